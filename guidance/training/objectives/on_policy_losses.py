"""Policy-gradient losses with the terms that stand beside them: the KL whose gradient is taken exactly, and
the value that serves as baseline. All [B, T] but for weights; see trimtab.guidance.losses.policy_gradient."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from trimtab.guidance.losses.common import keep, masked_mean
from trimtab.guidance.losses.policy_gradient import grpo, ppo, reinforce
from trimtab.guidance.losses.result import LossResult


def ppo_with_kl(mask: Tensor, kl: Tensor, kl_weight: Tensor, **scores: Any) -> LossResult:
    """ppo and the token mean of w_KL KL(π‖π₀). kl_weight: [], 0 where rewards hold a sampled KL."""
    return _add(ppo(mask=mask, **scores), kl_weight * keep(kl, mask).sum(1) * _per_token(mask))


def grpo_with_kl(
    mask: Tensor,
    kl: Tensor,
    kl_weight: Tensor,
    tau: Tensor,
    base_log_ratio: Tensor,
    **scores: Any,
) -> LossResult:
    """grpo with the KL at the drawn tokens weighed by tau, and that over the vocabulary by kl_weight: one of
    the two is 0."""
    result = grpo(mask=mask, base_log_ratio=base_log_ratio, tau=tau, **scores)  # type: ignore[arg-type]
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


def _add(result: LossResult, per_example: Tensor) -> LossResult:
    return LossResult(result.per_example + per_example, result.metrics)


def _per_token(mask: Tensor) -> Tensor:
    """By this a sum over tokens becomes a loss whose mean over replies is the mean over tokens."""
    return len(mask) / mask.sum().clamp(min=1)
