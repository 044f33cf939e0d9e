"""Losses: pure functions of tensors that return one loss per example, with metrics."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from trimtab.guidance.losses.preference import dpo
from trimtab.guidance.losses.result import LossResult
from trimtab.guidance.losses.reward import bradley_terry
from trimtab.guidance.losses.value import monte_carlo

Loss = Callable[..., LossResult]

ADVANTAGE_LOSSES: dict[str, Loss] = {
    "dpo": dpo,
    "conservative_dpo": partial(dpo, noise="conservative"),
    "robust_dpo": partial(dpo, noise="robust"),
}
REWARD_LOSSES: dict[str, Loss] = {"bradley_terry": bradley_terry}
VALUE_LOSSES: dict[str, Loss] = {"monte_carlo": monte_carlo}
LOSSES: dict[str, Loss] = {**ADVANTAGE_LOSSES, **REWARD_LOSSES, **VALUE_LOSSES}
