"""Losses: pure functions of tensors that return one loss per example, with metrics.

A file holds formulas and, last, its families: losses that are given the same arguments, by name. A loss that
joins a family costs that one file; trimtab.guidance.training.methods says what makes a family's arguments.
"""

from __future__ import annotations

from collections.abc import Mapping

from trimtab.guidance.losses import advantage, policy_gradient, preference, reward, value
from trimtab.guidance.losses.common import Formula, Loss, LossResult

__all__ = ["FAMILIES", "LOSSES", "Formula", "Loss", "LossResult"]

Family = Mapping[str, Formula]
FAMILIES: dict[str, dict[str, Family]] = {
    "reward": {
        "pairs": reward.PAIRS,
        "rankings": reward.RANKINGS,
        "rollouts": reward.ROLLOUTS,
        "unpaired": reward.UNPAIRED,
    },
    "advantage": {
        "pairs": preference.PAIRS,
        "unpaired": preference.UNPAIRED,
        "returns": advantage.RETURNS,
        "bootstrapped": advantage.BOOTSTRAPPED,
        "candidates": advantage.CANDIDATES,
        "prompts": policy_gradient.PROMPTS,
    },
    "value": {
        "returns": value.RETURNS,
        "whole_replies": value.WHOLE_REPLIES,
        "bootstrapped": value.BOOTSTRAPPED,
        "binned": value.BINNED,
    },
}
LOSSES: dict[str, dict[str, Formula]] = {
    part: {name: formula for family in families.values() for name, formula in family.items()}
    for part, families in FAMILIES.items()
}
