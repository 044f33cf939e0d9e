"""Losses of RLHF on a head: the policy π that learns is π₀ tilted by the head, and π_old wrote the rollouts.

log_ratio: [B, T], log π(y_t) − log π_old(y_t). mask: bool[B, T], the reply's positions. Advantages (see
`credit.py`) are [B, T], or [B], one for a whole reply; no gradient goes through them. Where a loss is a mean
over the tokens of the batch, per_example is scaled so that its own mean is that. Those that end in _with_kl
and _with_value add KL(π‖π₀), kl [B, T], whose gradient is taken exactly, and the value that is the baseline.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from trimtab.guidance.losses.common import Formula, LossResult, keep, masked_mean, per_position
from trimtab.guidance.losses.credit import (
    Credit,
    Scored,
    estimated,
    leave_one_out,
    less_value,
    normalised,
)


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
    tau: float | Tensor,
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


def ppo_with_kl(
    log_ratio: Tensor,
    advantages: Tensor,
    mask: Tensor,
    kl: Tensor,
    kl_weight: Tensor,
    values: Tensor,
    old_values: Tensor,
    returns: Tensor,
    entropy: Tensor,
    *,
    clip: float = 0.2,
    value_weight: float = 0.1,
    entropy_weight: float = 0.0,
) -> LossResult:
    """ppo and the token mean of w_KL KL(π‖π₀). kl_weight: [], 0 where rewards hold a sampled KL."""
    result = ppo(
        log_ratio,
        advantages,
        mask,
        clip=clip,
        values=values,
        old_values=old_values,
        returns=returns,
        value_weight=value_weight,
        entropy=entropy,
        entropy_weight=entropy_weight,
    )
    return _add(result, kl_weight * keep(kl, mask).sum(1) * _per_token(mask))


def grpo_with_kl(
    log_ratio: Tensor,
    advantages: Tensor,
    base_log_ratio: Tensor,
    mask: Tensor,
    kl: Tensor,
    kl_weight: Tensor,
    tau: Tensor,
    *,
    clip: float = 0.2,
) -> LossResult:
    """grpo with the KL at the drawn tokens weighed by tau, and that over the vocabulary by kl_weight: one of
    the two is 0."""
    result = grpo(log_ratio, advantages, base_log_ratio, mask, clip=clip, tau=tau)
    return _add(result, kl_weight * keep(kl, mask).sum(1) * _per_token(mask))


def reinforce_with_kl(
    logp: Tensor, advantages: Tensor, mask: Tensor, kl: Tensor, kl_weight: Tensor
) -> LossResult:
    """reinforce and the replies' sums of w_KL KL(π‖π₀)."""
    return _add(reinforce(logp, advantages, mask), kl_weight * keep(kl, mask).sum(1))


def reinforce_with_value(
    logp: Tensor,
    advantages: Tensor,
    mask: Tensor,
    kl: Tensor,
    kl_weight: Tensor,
    values: Tensor,
    returns: Tensor,
    *,
    value_weight: float = 0.1,
) -> LossResult:
    """reinforce_with_kl and the replies' sums of w_V ½(V − G)²."""
    error = keep(values, mask) - keep(returns, mask)
    result = _add(
        reinforce_with_kl(logp, advantages, mask, kl, kl_weight), value_weight * 0.5 * error.square().sum(1)
    )
    with torch.no_grad():
        return LossResult(
            result.per_example, result.metrics | {"value/loss": masked_mean(0.5 * error.square(), mask)}
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


def _add(result: LossResult, per_example: Tensor) -> LossResult:
    return LossResult(result.per_example + per_example, result.metrics)


def _per_token(mask: Tensor) -> Tensor:
    """By this a sum over tokens becomes a loss whose mean over replies is the mean over tokens."""
    return len(mask) / mask.sum().clamp(min=1)


@dataclass(frozen=True, slots=True)
class PolicyFormula(Formula):
    """A loss that learns from replies which the tilt wrote.

    credit: what makes its advantages. on_policy: fields of the on-policy configuration that it reads, of
    those that not all do. has_value: a value is learned along. compares: a prompt's replies, and needs two.
    """

    credit: Callable[[Scored], Credit] = less_value
    on_policy: tuple[str, ...] = ()
    has_value: bool = False
    compares: bool = False


PROMPTS = {
    "ppo": PolicyFormula(
        ppo_with_kl,
        ("tau", "discount", "clip"),
        estimated,
        ("passes", "lam", "value_weight", "entropy_weight"),
        has_value=True,
    ),
    "rloo": PolicyFormula(reinforce_with_kl, ("tau", "discount"), leave_one_out, compares=True),
    "grpo": PolicyFormula(grpo_with_kl, ("tau", "discount", "clip"), normalised, ("passes",), compares=True),
    "reinforce": PolicyFormula(
        reinforce_with_value, ("tau", "discount"), less_value, ("value_weight",), has_value=True
    ),
}
