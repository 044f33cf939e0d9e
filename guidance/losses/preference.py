"""Losses that train an advantage by preference, on R = Σ_t ρ_t of a reply: of pairs, or of single replies
that are called good or bad."""

from __future__ import annotations

from functools import partial
from typing import Literal

from torch import Tensor
from torch.nn import functional as F

from trimtab.guidance.losses.common import Formula, LossResult

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
    return LossResult(losses, _metrics(tau * chosen, tau * rejected))


def ipo(
    chosen: Tensor, rejected: Tensor, chosen_length: Tensor, rejected_length: Tensor, *, tau: float
) -> LossResult:
    """(R_w/|y_w| − R_l/|y_l| − 1/(2τ))² (Azar 2023, with averages per token): the margin has a goal, ½ as
    `rewards/margins`, beyond which it does not pay.

    chosen, rejected: [B], R in nats. chosen_length, rejected_length: [B], tokens. tau: KL temperature.

    By hand: R_w = 2 over 4 tokens, R_l = −1 over 2, τ = ¼: (½ + ½ − 2)² = 1.
    """
    chosen, rejected = chosen / chosen_length, rejected / rejected_length
    losses = (chosen - rejected - 1 / (2 * tau)).square()
    return LossResult(losses, _metrics(tau * chosen, tau * rejected))


def simpo(
    chosen: Tensor,
    rejected: Tensor,
    chosen_base: Tensor,
    rejected_base: Tensor,
    chosen_length: Tensor,
    rejected_length: Tensor,
    *,
    tau: float,
    gamma: float,
) -> LossResult:
    """−logσ(τ(ℓ̄_w − ℓ̄_l) − γ) with ℓ̄ the mean log-probability of a token under the tilt (Meng 2024).

    The base enters ℓ̄ as a part of the tilt and not as a reference: the tilt must overcome it.

    chosen, rejected: [B], R. chosen_base, rejected_base: [B], Σ log π₀(y_t); ℓ̄ = (base + R)/length.
    chosen_length, rejected_length: [B], tokens. tau: scale of the margin; gamma: margin to reach, in its
    units.

    By hand: bases −2 and −1, R = (2 ln 3, 1), lengths (2, 3): ℓ̄_w = ln 3 − 1, ℓ̄_l = 0; τ = 2, γ = ln 9 − 2:
    −logσ(2 ln 3 − 2 − ln 9 + 2) = ln 2 = 0.6931472.
    """
    chosen = (chosen_base + chosen) / chosen_length
    rejected = (rejected_base + rejected) / rejected_length
    losses = -F.logsigmoid(tau * (chosen - rejected) - gamma)
    return LossResult(losses, _metrics(tau * chosen, tau * rejected))


def kto(
    log_ratio: Tensor,
    mismatched: Tensor,
    desirable: Tensor,
    *,
    tau: float,
    weight_desirable: float = 1.0,
    weight_undesirable: float = 1.0,
) -> LossResult:
    """Kahneman–Tversky optimisation (Ethayarajh 2024).

    z = max(0, mean R of mismatched pairs), an estimate of the KL, without gradient. Desirable:
    λ_D (1 − σ(τ(R − z))); undesirable: λ_U (1 − σ(τ(z − R))).

    log_ratio: [B], R in nats. mismatched: [B], R of replies after other replies' prompts (longer where
    processes share theirs). desirable: bool[B]. tau: KL temperature. weight_…: λ_D, λ_U. The reward of a kind
    that the batch has not is left out of the metrics.

    By hand: R = (ln 3, 0), desirable = (yes, no), τ = 1. Mismatched (−1, −1): z = 0, 1 − σ(ln 3) = ¼ and
    1 − σ(0) = ½. Mismatched (0, 2 ln 3): z = ln 3, 1 − σ(0) = ½ and 1 − σ(ln 3) = ¼.

    Raises:
        ValueError: fewer than two mismatched pairs; a batch of one has only the matched pair.
    """
    if len(mismatched) < 2:
        raise ValueError("kto needs a batch of at least 2: one example has no other prompt to mismatch")
    baseline = mismatched.detach().mean().clamp(min=0)
    gain = tau * (log_ratio - baseline)
    losses = (weight_desirable * (-gain).sigmoid()).where(desirable, weight_undesirable * gain.sigmoid())
    rewards = tau * log_ratio.detach()
    kinds = {"rewards/chosen": desirable, "rewards/rejected": ~desirable}
    metrics = {name: rewards[kind].mean() for name, kind in kinds.items() if kind.any()}
    right = (rewards > tau * baseline) == desirable
    return LossResult(losses, {**metrics, "rewards/accuracies": right.float().mean(), "kto/kl": baseline})


def _metrics(chosen: Tensor, rejected: Tensor) -> dict[str, Tensor]:
    chosen, rejected = chosen.detach(), rejected.detach()
    return {
        "rewards/chosen": chosen.mean(),
        "rewards/rejected": rejected.mean(),
        "rewards/margins": (chosen - rejected).mean(),
        "rewards/accuracies": (chosen > rejected).float().mean(),
    }


PAIRS = {
    "dpo": Formula(dpo, ("tau", "shortlist")),
    "conservative_dpo": Formula(partial(dpo, noise="conservative"), ("tau", "flipped", "shortlist")),
    "robust_dpo": Formula(partial(dpo, noise="robust"), ("tau", "flipped", "shortlist")),
    "ipo": Formula(ipo, ("tau", "shortlist")),
    "simpo": Formula(simpo, ("tau", "gamma", "shortlist")),
}
UNPAIRED = {"kto": Formula(kto, ("tau", "weight_desirable", "weight_undesirable", "shortlist"))}
