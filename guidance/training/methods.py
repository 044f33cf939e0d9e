"""What trains a part of a head: by the name of its loss, the rows it reads, and what goes from one to the
other."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

from torch import Tensor

from trimtab.guidance.losses import ADVANTAGE_LOSSES, REWARD_LOSSES, VALUE_LOSSES, Loss
from trimtab.guidance.losses.advantage import distil
from trimtab.guidance.losses.common import LossResult, sum_by_reply
from trimtab.guidance.losses.value import td_lambda
from trimtab.guidance.training.objectives.base import Objective
from trimtab.guidance.training.objectives.distil import DistilledAdvantage
from trimtab.guidance.training.objectives.on_policy import (
    ClippedPolicyObjective,
    ClippedValuePolicyObjective,
    PolicyObjective,
    ValuePolicyObjective,
    grpo_with_kl,
    ppo_with_kl,
    reinforce_with_kl,
    reinforce_with_value,
)
from trimtab.guidance.training.objectives.pairs import (
    AveragePairAdvantage,
    LabelAdvantage,
    LabelReward,
    LikelihoodPairAdvantage,
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

Part = Literal["reward", "advantage", "value"]
Rows = Literal["pairs", "rankings", "unpaired", "rollouts", "prompts"]


@dataclass(frozen=True, slots=True)
class Method:
    """rows: the kind of rows it reads. objective: makes batches of them into what the loss takes.

    options: fields of the part's configuration that are handed to the loss, by name; settings: those that
    the objective reads. A part's other options belong to other methods.
    needs: another part of the head that must be there, trained before. has_rewards: its rollouts must be
    scored. is_tilt: an advantage that is trained as a tilt, and has a strength that is its optimum.
    needs_plain: its rollouts must be plain samples of the policy.
    """

    rows: Rows
    objective: type[Objective]
    loss: Loss
    options: tuple[str, ...] = ()
    settings: tuple[str, ...] = ()
    needs: tuple[Part, ...] = ()
    has_rewards: bool = True
    is_tilt: bool = True
    needs_plain: bool = True

    def bind(self, part_config: Any) -> Loss:
        """The loss with the options that the part's configuration gives it."""
        return partial(self.loss, **{name: getattr(part_config, name) for name in self.options})


def _td_lambda(values: Tensor, rewards: Tensor, mask: Tensor, *, discount: float, lam: float) -> LossResult:
    return td_lambda(values, rewards, mask, gamma=discount, lam=lam)


def _distil(advantage: Tensor, target: Tensor, weight: Tensor, lengths: Tensor) -> LossResult:
    """One loss for each rollout: the mean over its prefixes, of which there are lengths i64[B]."""
    result = distil(advantage, target, weight)
    return LossResult(sum_by_reply(result.per_example, lengths) / lengths, result.metrics)


_DPO = ("tau", "flipped")
_BINS = ("low", "high")
_ON_POLICY = ("tau", "discount")
METHODS: dict[Part, dict[str, Method]] = {
    "reward": {
        "bradley_terry": Method(
            "pairs", PairReward, REWARD_LOSSES["bradley_terry"], ("centring",), ("margin",)
        ),
        "ranked": Method("rankings", RankingReward, REWARD_LOSSES["ranked"]),
        "regression": Method("rollouts", RolloutReward, REWARD_LOSSES["regression"], needs_plain=False),
        "good_bad": Method("unpaired", LabelReward, REWARD_LOSSES["good_bad"]),
    },
    "advantage": {
        "dpo": Method("pairs", PairAdvantage, ADVANTAGE_LOSSES["dpo"], _DPO),
        "conservative_dpo": Method("pairs", PairAdvantage, ADVANTAGE_LOSSES["conservative_dpo"], _DPO),
        "robust_dpo": Method("pairs", PairAdvantage, ADVANTAGE_LOSSES["robust_dpo"], _DPO),
        "ipo": Method("pairs", AveragePairAdvantage, ADVANTAGE_LOSSES["ipo"], ("tau",)),
        "simpo": Method("pairs", LikelihoodPairAdvantage, ADVANTAGE_LOSSES["simpo"], ("tau", "gamma")),
        "kto": Method(
            "unpaired",
            LabelAdvantage,
            ADVANTAGE_LOSSES["kto"],
            ("tau", "weight_desirable", "weight_undesirable"),
        ),
        "monte_carlo": Method(
            "rollouts",
            ReturnAdvantage,
            ADVANTAGE_LOSSES["monte_carlo"],
            settings=("discount",),
            is_tilt=False,
        ),
        "cd_q": Method(
            "rollouts",
            BootstrappedAdvantage,
            ADVANTAGE_LOSSES["cd_q"],
            settings=("discount",),
            is_tilt=False,
        ),
        "distil": Method(
            "rollouts",
            DistilledAdvantage,
            _distil,
            settings=("top_k", "num_prefixes"),
            needs=("value",),
            has_rewards=False,
            is_tilt=False,
        ),
        "ppo": Method("prompts", ClippedValuePolicyObjective, ppo_with_kl, ("clip",), _ON_POLICY),
        "rloo": Method("prompts", PolicyObjective, reinforce_with_kl, settings=_ON_POLICY),
        "grpo": Method("prompts", ClippedPolicyObjective, grpo_with_kl, ("clip",), _ON_POLICY),
        "reinforce": Method("prompts", ValuePolicyObjective, reinforce_with_value, settings=_ON_POLICY),
    },
    "value": {
        "monte_carlo": Method("rollouts", ReturnValue, VALUE_LOSSES["monte_carlo"], settings=("discount",)),
        "position_weighted": Method(
            "rollouts", WholeReplyValue, VALUE_LOSSES["position_weighted"], settings=("discount",)
        ),
        "td_lambda": Method(
            "rollouts", BootstrappedValue, _td_lambda, ("discount", "lam"), settings=("discount",)
        ),
        "distributional": Method(
            "rollouts", BinnedReturnValue, VALUE_LOSSES["distributional"], _BINS, ("bins", "discount")
        ),
    },
}
