"""Losses that train a value: one scalar for every prefix of a rollout."""

from __future__ import annotations

from torch import Tensor

from trimtab.guidance.losses.result import LossResult


def monte_carlo(values: Tensor, reward: Tensor, mask: Tensor) -> LossResult:
    """½ Σ_t m_t (V(s_t) − r)² with r the reward of the whole reply (Mudgal 2023, CD-FUDGE).

    values: [B, T], V(s_0) … V(s_{T−1}). reward: [B]. mask: bool[B, T], the reply's positions.

    By hand: V = (1, 2, 9), m = (1, 1, 0), r = 3: ½ (4 + 1) = 2.5.
    """
    error = (values - reward[:, None]).where(mask, values.new_zeros(()))
    losses = 0.5 * error.square().sum(1)
    return LossResult(
        losses,
        {
            "value/rmse": (error.detach().square().sum() / mask.sum()).sqrt(),
            "value/mean": values.detach()[mask].mean(),
        },
    )
