"""Registry of methods: loss name → rows, objective, loss with its options. Losses stand in families in
trimtab.guidance.losses; what holds for all of a family stands here."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Literal

from trimtab.guidance.losses import FAMILIES, Formula
from trimtab.guidance.training.config import PartName
from trimtab.guidance.training.objectives.base import Objective
from trimtab.guidance.training.objectives.distil import DistilledAdvantage
from trimtab.guidance.training.objectives.on_policy import PolicyObjective
from trimtab.guidance.training.objectives.pairs import (
    LabelAdvantage,
    LabelReward,
    PairAdvantage,
    PairReward,
    RankingReward,
)
from trimtab.guidance.training.objectives.rollouts import (
    BinnedReturnValue,
    BootstrappedAdvantage,
    BootstrappedValue,
    ReturnAdvantage,
    ReturnValue,
    RolloutReward,
    WholeReplyValue,
)

Rows = Literal["pairs", "rankings", "unpaired", "rollouts", "prompts"]


@dataclass(frozen=True, slots=True)
class Method:
    """rows: the kind of rows it reads. objective: makes batches of them into what the loss takes.

    loss: with the options of the part's configuration that are read; the others belong to other methods.
    needs: another part of the head that must be there, trained before. has_rewards: its rollouts must be
    scored. is_tilt: an advantage that is trained as a tilt, and has a strength that is its optimum.
    needs_plain: its rollouts must be plain samples of the policy. is_return: it regresses on what was earned,
    which the replies of a steered policy tell of that policy.
    """

    rows: Rows
    objective: type[Objective]
    loss: Formula
    needs: tuple[PartName, ...] = ()
    has_rewards: bool = True
    is_tilt: bool = True
    needs_plain: bool = True
    is_return: bool = False


_FAMILIES: dict[PartName, dict[str, partial[Method]]] = {
    "reward": {
        "pairs": partial(Method, "pairs", PairReward),
        "rankings": partial(Method, "rankings", RankingReward),
        "rollouts": partial(Method, "rollouts", RolloutReward, needs_plain=False),
        "unpaired": partial(Method, "unpaired", LabelReward),
    },
    "advantage": {
        "pairs": partial(Method, "pairs", PairAdvantage),
        "unpaired": partial(Method, "unpaired", LabelAdvantage),
        "returns": partial(Method, "rollouts", ReturnAdvantage, is_tilt=False, is_return=True),
        "bootstrapped": partial(Method, "rollouts", BootstrappedAdvantage, is_tilt=False),
        "candidates": partial(
            Method, "rollouts", DistilledAdvantage, needs=("value",), has_rewards=False, is_tilt=False
        ),
        "prompts": partial(Method, "prompts", PolicyObjective),
    },
    "value": {
        "returns": partial(Method, "rollouts", ReturnValue, is_return=True),
        "whole_replies": partial(Method, "rollouts", WholeReplyValue, is_return=True),
        "bootstrapped": partial(Method, "rollouts", BootstrappedValue),
        "binned": partial(Method, "rollouts", BinnedReturnValue, is_return=True),
    },
}
METHODS: dict[PartName, dict[str, Method]] = {
    part: {
        name: method(loss=formula)
        for family, method in families.items()
        for name, formula in FAMILIES[part][family].items()
    }
    for part, families in _FAMILIES.items()
}
