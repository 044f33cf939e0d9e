"""The loss that trains an advantage on single replies, each called good or bad."""

from __future__ import annotations

from torch import Tensor

from trimtab.guidance.losses.result import LossResult


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
