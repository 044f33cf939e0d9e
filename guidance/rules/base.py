"""Rule: what a request asks for beside its heads, and the checks that rules' options share. No torch here."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from trimtab.guidance.errors import RuleError
from trimtab.guidance.ranges import is_integer_in, is_number_in


@dataclass(frozen=True, slots=True)
class Rule:
    """How scores become the next token. A rule's fields are its options, under their names in a request.

    kind: its name in RULES. reads_values: it is the heads' values that steer, times strength, so that
    strength 0 is no rule at all. adds_values: what it adds to the logits are values themselves, times
    strength. num_lanes: sequences of one choice that run together. num_probes: tokens that are tried at each
    draw. wide: the option that lanes or probes are counted by.
    """

    kind: ClassVar[str]
    wide: ClassVar[str]
    reads_values: ClassVar[bool] = False
    adds_values: ClassVar[bool] = False

    @property
    def num_lanes(self) -> int:
        return 1

    @property
    def is_pool(self) -> bool:
        """Whether tokens are drawn in all of its lanes; see PoolRule."""
        return False

    @property
    def num_probes(self) -> int:
        return 0

    @property
    def tilts(self) -> bool:
        """Whether the heads' advantages are added to the logits."""
        return True

    @property
    def companion(self) -> tuple[int, ...]:
        """The prompt of a second lane that gives logits and receives the drawn token; () for none."""
        return ()

    @property
    def experts(self) -> tuple[str, ...]:
        """Names of further models that are run over the lane's tokens beside the policy."""
        return ()

    @property
    def log_alpha(self) -> float:
        """Tokens less likely than the likeliest by more than this are left out; −inf leaves out none."""
        return -math.inf

    @property
    def adds_scores(self) -> bool:
        """Whether it adds scores of its own to the logits, with or without heads. Controllers then lessen
        both by the same share."""
        return bool(self.companion or self.experts)

    def reply_kl(self, kl: float, figures: Mapping[str, float]) -> float:
        """Nats of a reply from the policy, in the mean over replies or a bound on that. kl: of what its
        tokens were drawn from. figures: what the rule reported."""
        return kl


def check_integer(name: str, value: object, low: int, high: int) -> None:
    if not is_integer_in(value, low, high):
        raise RuleError(name, f"must be an integer, {low}…{high}")


def check_number(name: str, value: object, low: float, high: float) -> None:
    if not is_number_in(value, low, high):
        raise RuleError(name, f"must be a number, {low:g}…{high:g}")


def check_word(name: str, value: object, words: tuple[str, ...]) -> None:
    if value not in words:
        raise RuleError(name, f"must be one of {', '.join(words)}")
