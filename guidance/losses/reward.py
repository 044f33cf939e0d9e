"""Losses that train a reward: one scalar for a finished reply."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F

from trimtab.guidance.losses.result import LossResult


def bradley_terry(
    chosen: Tensor, rejected: Tensor, *, margin: float | Tensor = 0.0, centring: float = 0.01
) -> LossResult:
    """−logσ(r_w − r_l − margin) + c (r_w + r_l)² (Bradley and Terry 1952; centring from Eisenstein 2023).

    chosen, rejected: [B], the rewards r_w and r_l. margin: by how much to prefer, one number or [B].
    centring: c, which holds the rewards' free constant near zero.

    By hand: r_w = ln 3, r_l = 0, c = 0.01: ln 4/3 + 0.01 (ln 3)² = 0.2876821 + 0.0120695 = 0.2997516.
    """
    difference = chosen - rejected
    losses = -F.logsigmoid(difference - margin) + centring * (chosen + rejected).square()
    return LossResult(
        losses,
        {
            "reward/chosen": chosen.detach().mean(),
            "reward/rejected": rejected.detach().mean(),
            "reward/margin": difference.detach().mean(),
            "reward/accuracy": (difference > 0).float().mean(),
        },
    )
