"""Losses that train an advantage by preference, on R = Σ_t ρ_t of the chosen and the rejected reply."""

from __future__ import annotations

from typing import Literal

from torch import Tensor
from torch.nn import functional as F

from trimtab.guidance.losses.result import LossResult

Noise = Literal["none", "conservative", "robust"]


def dpo(
    chosen: Tensor, rejected: Tensor, *, tau: float = 0.1, flipped: float = 0.0, noise: Noise = "none"
) -> LossResult:
    """Direct preference optimisation (Rafailov 2023) and its two answers to flipped labels.

    d = R_w − R_l. Plain: −logσ(τd). Conservative (Mitchell 2023): −(1−ε) logσ(τd) − ε logσ(−τd).
    Robust (Chowdhury 2024): [−(1−ε) logσ(τd) + ε logσ(−τd)] / (1−2ε), unbiased for the plain loss.

    chosen, rejected: [B], nats. tau: KL temperature. flipped: ε, the share of labels taken to be wrong.

    By hand: R_w = ln 3, R_l = 0, τ = 1: −logσ(ln 3) = ln 4/3 = 0.2876821 and −logσ(−ln 3) = ln 4 = 1.3862944;
    with ε = 0.1 conservative is 0.9·0.2876821 + 0.1·1.3862944 = 0.3975433, robust
    (0.9·0.2876821 − 0.1·1.3862944)/0.8 = 0.1503555.

    Raises:
        ValueError: ε outside [0, ½), or given without a kind of noise.
    """
    if not 0 <= flipped < 0.5 or (flipped > 0) != (noise != "none"):
        raise ValueError(f"flipped={flipped}, noise={noise!r}: give a kind of noise and 0 < flipped < 0.5")
    margin = tau * (chosen - rejected)
    right, wrong = -F.logsigmoid(margin), -F.logsigmoid(-margin)
    sign = -1 if noise == "robust" else 1
    losses = ((1 - flipped) * right + sign * flipped * wrong) / (1 - flipped + sign * flipped)
    return LossResult(
        losses,
        {
            "rewards/chosen": tau * chosen.detach().mean(),
            "rewards/rejected": tau * rejected.detach().mean(),
            "rewards/margins": margin.detach().mean(),
            "rewards/accuracies": (margin > 0).float().mean(),
        },
    )
