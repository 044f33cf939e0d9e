"""Losses of RLHF on a head: the policy π that learns is π₀ tilted by the head, and π_old wrote the rollouts.

log_ratio: [B, T], log π(y_t) − log π_old(y_t). mask: bool[B, T], the reply's positions. Advantages (see
`returns.py`) are [B, T], or [B], one for a whole reply; no gradient goes through them. Where a loss is a mean
over the tokens of the batch, per_example is scaled so that its own mean is that.
"""

from __future__ import annotations

import torch
from torch import Tensor

from trimtab.guidance.losses.common import LossResult, keep, masked_mean, per_position


def ppo(
    log_ratio: Tensor,
    advantages: Tensor,
    mask: Tensor,
    *,
    clip: float = 0.2,
    values: Tensor | None = None,
    old_values: Tensor | None = None,
    returns: Tensor | None = None,
    value_weight: float = 0.1,
    entropy: Tensor | None = None,
    entropy_weight: float = 0.0,
) -> LossResult:
    """Token mean of max(−Aρ, −A clip(ρ, 1±c)) + w_V ½ max((v−G)², (clip(v, v_old±c)−G)²) − w_H H, ρ = π/π_old
    (Schulman 2017).

    values, old_values, returns: [B, T], v, v_old (when the rollout was written) and G (before A is whitened);
    all or none. entropy: [B, T], H of π, nats.

    By hand: c = 0.2, A = 1, ρ = (1.5, 0.5): max(−1.5, −1.2) and max(−0.5, −0.8): mean (−1.2 − 0.5)/2 = −0.85.
    v = 1, v_old = 0, G = 1: clip(v) = 0.2: ½ max(0, 0.64) = 0.32, and 0.1 of that is 0.032.

    Raises:
        ValueError: a part of values, old_values and returns, or entropy_weight without entropy.
    """
    losses, metrics = _clipped(log_ratio, advantages, mask, clip)
    if values is not None and old_values is not None and returns is not None:
        values_loss = _clipped_value(values, old_values, returns, mask, clip)
        losses = losses + value_weight * values_loss
        metrics["value/loss"] = masked_mean(values_loss.detach(), mask)
    elif not (values is None and old_values is None and returns is None):
        raise ValueError("ppo's value term needs values, old_values and returns: give all three or none")
    if entropy is not None:
        losses = losses - entropy_weight * keep(entropy, mask)
        metrics["policy/entropy"] = masked_mean(entropy.detach(), mask)
    elif entropy_weight:
        raise ValueError(f"entropy_weight={entropy_weight} needs the entropy of every position")
    return LossResult(_token_mean(losses, mask), metrics)


def grpo(
    log_ratio: Tensor,
    advantages: Tensor,
    base_log_ratio: Tensor,
    mask: Tensor,
    *,
    clip: float = 0.2,
    tau: float,
) -> LossResult:
    """Token mean of max(−Aρ, −A clip(ρ, 1±c)) + τ (eˣ − x − 1), x = log π₀ − log π (Shao 2024; a mean over
    the tokens of the batch as in Yu 2025: a token of a long reply counts as much as one of a short one).

    advantages: of `group_normalise`. base_log_ratio: [B, T], x, with gradient. tau: weight of the KL.

    By hand: ρ = 1, A = 2, x = ln 2, τ = 1: −2 + (2 − 0.6931472 − 1) = −1.6931472.
    """
    losses, metrics = _clipped(log_ratio, advantages, mask, clip)
    kl = _excess(keep(base_log_ratio, mask))
    metrics["policy/kl"] = masked_mean(kl.detach(), mask)
    return LossResult(_token_mean(losses + tau * kl, mask), metrics)


def reinforce(logp: Tensor, advantages: Tensor, mask: Tensor) -> LossResult:
    """−Σ_t m_t A_t log π(y_t) (Williams 1992). With A of `group_baseline` it is RLOO (Ahmadian 2024).

    logp: [B, T], log π(y_t), or log π/π₀, which differs by a constant. advantages: less a baseline.

    By hand: log π = (−1, −2), A = 3: 9; A = (1, −1): 1 − 2 = −1.
    """
    logp, advantages = keep(logp, mask), per_position(advantages.detach(), mask)
    return LossResult(
        -(advantages * logp).sum(1),
        {
            "policy/logp": masked_mean(logp.detach(), mask),
            "policy/advantage": masked_mean(advantages, mask),
        },
    )


def _clipped(
    log_ratio: Tensor, advantages: Tensor, mask: Tensor, clip: float
) -> tuple[Tensor, dict[str, Tensor]]:
    log_ratio, advantages = keep(log_ratio, mask), per_position(advantages.detach(), mask)
    ratio = log_ratio.exp()
    plain, clipped = -advantages * ratio, -advantages * ratio.clamp(1 - clip, 1 + clip)
    metrics = {
        "policy/ratio": masked_mean(ratio.detach(), mask),
        "policy/approx_kl": masked_mean(_excess(log_ratio.detach()), mask),
        "policy/clip_fraction": masked_mean((clipped > plain).to(ratio.dtype), mask),
    }
    return torch.maximum(plain, clipped), metrics


def _clipped_value(values: Tensor, old: Tensor, returns: Tensor, mask: Tensor, clip: float) -> Tensor:
    values, old, returns = keep(values, mask), keep(old.detach(), mask), keep(returns.detach(), mask)
    near = values.clamp(old - clip, old + clip)
    return 0.5 * torch.maximum((values - returns).square(), (near - returns).square())


def _excess(x: Tensor) -> Tensor:
    """eˣ − x − 1 ≥ 0: with x = log q/p, an estimate of KL(p‖q) at a sample of p, never negative."""
    return x.expm1() - x


def _token_mean(losses: Tensor, mask: Tensor) -> Tensor:
    return keep(losses, mask).sum(1) * len(losses) / mask.sum().clamp(min=1)
