"""Losses: pure functions of tensors that return one loss per example, with metrics."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from trimtab.guidance.losses.advantage import cd_q, distil, q_monte_carlo
from trimtab.guidance.losses.common import LossResult
from trimtab.guidance.losses.policy_gradient import grpo, ppo, reinforce
from trimtab.guidance.losses.preference import dpo, ipo, kto, simpo
from trimtab.guidance.losses.reward import bradley_terry, good_bad, ranked, regression
from trimtab.guidance.losses.value import distributional, monte_carlo, position_weighted, td_lambda

Loss = Callable[..., LossResult]

ADVANTAGE_LOSSES: dict[str, Loss] = {
    "dpo": dpo,
    "conservative_dpo": partial(dpo, noise="conservative"),
    "robust_dpo": partial(dpo, noise="robust"),
    "ipo": ipo,
    "simpo": simpo,
    "kto": kto,
    "monte_carlo": q_monte_carlo,
    "cd_q": cd_q,
    "distil": distil,
    "ppo": ppo,
    "rloo": reinforce,
    "grpo": grpo,
    "reinforce": reinforce,
}
REWARD_LOSSES: dict[str, Loss] = {
    "bradley_terry": bradley_terry,
    "ranked": ranked,
    "regression": regression,
    "good_bad": good_bad,
}
VALUE_LOSSES: dict[str, Loss] = {
    "monte_carlo": monte_carlo,
    "position_weighted": position_weighted,
    "td_lambda": td_lambda,
    "distributional": distributional,
}
LOSSES: dict[str, dict[str, Loss]] = {
    "advantage": ADVANTAGE_LOSSES,
    "value": VALUE_LOSSES,
    "reward": REWARD_LOSSES,
}
