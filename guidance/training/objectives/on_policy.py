"""From replies with their credit to what a policy-gradient loss takes."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from trimtab.guidance.features.source import FeatureSource
from trimtab.guidance.heads.forms import Head, Scalar, make_scalar
from trimtab.guidance.losses.common import LossResult, keep, masked_mean
from trimtab.guidance.losses.policy_gradient import grpo, ppo, reinforce
from trimtab.guidance.training.config import TrainConfig
from trimtab.guidance.training.objectives.base import Objective, Scores, pad
from trimtab.guidance.training.objectives.tilt import Tilt, tilt_terms


@dataclass(frozen=True, slots=True)
class Experience:
    """A reply of T drawn tokens. h: [T, d], where they were predicted. tokens: i64[T]. log_ratio: ρ of the
    tilt that drew them; values before them; advantages and returns; all [T]."""

    h: Tensor
    tokens: Tensor
    log_ratio: Tensor
    values: Tensor
    advantages: Tensor
    returns: Tensor


@dataclass(frozen=True, slots=True)
class Iteration:
    """What holds for all replies of an iteration. tau: weight of the KL at the drawn tokens; kl_weight: of
    the exact one. spread: of the returns, the unit in which values are learned. figures: to be logged."""

    tau: float = 0.0
    kl_weight: float = 0.0
    spread: float = 1.0
    figures: dict[str, float] = field(default_factory=dict)


class PolicyObjective(Objective):
    """The tilt of the head's advantage, at strength 1, on replies that it wrote an iteration ago.

    `iteration` is set by what samples, before the iteration's replies are collated.
    """

    takes: tuple[str, ...] = ("logp", "advantages", "mask", "kl", "kl_weight")

    def __init__(self, head: Head, config: TrainConfig, features: FeatureSource) -> None:
        super().__init__(head, config, features)
        assert head.advantage is not None
        self.head = (head,)  # in a tuple: its other parts are not among this module's parameters
        self.tilt = Tilt(head.advantage, features.policy)
        self.value: Scalar | None = None
        self.iteration = Iteration()

    def collate(self, items: Sequence[Experience]) -> dict[str, Tensor]:
        names = ("h", "tokens", "log_ratio", "values", "advantages", "returns")
        batch = {name: torch.cat([getattr(item, name) for item in items]) for name in names}
        return {**batch, "lengths": torch.tensor([len(item.tokens) for item in items])}

    def forward(
        self,
        h: Tensor,
        tokens: Tensor,
        log_ratio: Tensor,
        values: Tensor,
        advantages: Tensor,
        returns: Tensor,
        lengths: Tensor,
    ) -> tuple[Scores, Scores]:
        self.tilt.watch(h)
        terms, unit = tilt_terms(self.tilt, h, tokens), self.iteration.spread
        by_token = {
            "logp": terms.log_ratio,
            "log_ratio": terms.log_ratio - log_ratio,
            "base_log_ratio": -terms.log_ratio,
            "kl": terms.kl,
            "entropy": terms.entropy,
            "advantages": advantages,
            "old_values": values / unit,
            "returns": returns / unit,
        }
        if self.value is not None:
            by_token["values"] = self.value(h.float()) / unit
        scores = {name: pad(x, lengths)[0] for name, x in by_token.items() if name in self.takes}
        scores["mask"] = pad(terms.kl, lengths)[1]
        for name in ("tau", "kl_weight"):
            if name in self.takes:
                scores[name] = h.new_tensor(getattr(self.iteration, name), dtype=torch.float32)
        return scores, {name: torch.tensor(figure) for name, figure in self.iteration.figures.items()}

    def figures(self) -> Scores:
        return self.tilt.measure()


class ValuePolicyObjective(PolicyObjective):
    """With a value as baseline, trained along and thrown away: it forecasts what the tilt will get, less its
    KL, where the head's own value forecasts what the policy would. It begins as a copy of that, where there
    is one; else it is built as the configuration says."""

    takes = (*PolicyObjective.takes, "values", "returns")

    def __init__(self, head: Head, config: TrainConfig, features: FeatureSource) -> None:
        super().__init__(head, config, features)
        if head.value is not None:
            self.value = copy.deepcopy(head.value).requires_grad_()
        else:
            size = features.policy.identity.hidden_size
            self.value = make_scalar(config.value.part(), size).to(features.policy.device)


class ClippedValuePolicyObjective(ValuePolicyObjective):
    takes = (
        "log_ratio",
        "advantages",
        "mask",
        "kl",
        "kl_weight",
        "values",
        "old_values",
        "returns",
        "entropy",
    )


class ClippedPolicyObjective(PolicyObjective):
    takes = ("log_ratio", "advantages", "mask", "kl", "kl_weight", "base_log_ratio", "tau")


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
