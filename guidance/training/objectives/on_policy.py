"""Objective of policy-gradient losses: from replies with their credit to what the loss takes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from trimtab.guidance.features.source import FeatureSource
from trimtab.guidance.heads.forms import Head, along
from trimtab.guidance.losses.policy_gradient import PROMPTS
from trimtab.guidance.training.config import TrainConfig
from trimtab.guidance.training.objectives.base import Objective, Scores, pad
from trimtab.guidance.training.objectives.rollouts import own_value
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

    `iteration` is set by what samples, before the iteration's replies are collated. Some losses have a value
    as baseline, trained along and thrown away: it forecasts what the tilt will get, less its KL, where the
    head's own value forecasts what the policy would. It begins as a copy of that, where there is one; else it
    is built as the configuration says.
    """

    def __init__(self, head: Head, config: TrainConfig, features: FeatureSource) -> None:
        super().__init__(head, config, features)
        assert head.advantage is not None
        self.head = (head,)  # in a tuple: its other parts are not among this module's parameters
        self.tilt = Tilt(head.advantage, features.policy)
        self.formula = PROMPTS[config.advantage.loss]
        self.value = own_value(head, config, features.policy) if self.formula.has_value else None
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
            by_token["values"] = along(self.value, h.float(), lengths) / unit
        scores = {name: pad(x, lengths)[0] for name, x in by_token.items()}
        scores["mask"] = pad(terms.kl, lengths)[1]
        for name in ("tau", "kl_weight"):
            scores[name] = h.new_tensor(getattr(self.iteration, name), dtype=torch.float32)
        return scores, {name: torch.tensor(figure) for name, figure in self.iteration.figures.items()}

    def figures(self) -> Scores:
        return self.tilt.measure()
