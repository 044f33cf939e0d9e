"""Pools: sequences of one choice that are drawn side by side, and stand still after each block to be sifted.
No torch here."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from trimtab.guidance.rules.base import Rule, check_integer, check_word

MAX_LANES = 64
MAX_BLOCK = 1024
PROPOSALS = ("policy", "tilt")


@dataclass(slots=True)
class Standing:
    """One sequence of a pool as it stands still.

    score: β times the heads' weighted values, in standard units, of all its tokens. start: of none of them,
    at the prompt's end. gain: what the score has grown by since the pool stood still last. log_ratio:
    Σ log π₀ − log π_β of the tokens drawn since, 0 where the policy draws. log_weight: what a rule keeps of
    it. is_over: its reply has ended.
    """

    score: float = 0.0
    start: float | None = None
    gain: float = 0.0
    log_ratio: float = 0.0
    log_weight: float = 0.0
    is_over: bool = False

    @property
    def growth(self) -> float:
        """Of the score, over the whole reply."""
        return self.score - (self.start or 0.0)


@dataclass(frozen=True, slots=True)
class PoolRule(Rule):
    """A rule of several sequences. block: tokens that each draws before it is measured. proposal: whether the
    policy draws them, or the heads' tilt."""

    reads_values: ClassVar[bool] = True
    block: int = 16
    proposal: str = "policy"

    def __post_init__(self) -> None:
        check_integer(self.wide, getattr(self, self.wide), 2, MAX_LANES)
        check_integer("block", self.block, 1, MAX_BLOCK)
        check_word("proposal", self.proposal, PROPOSALS)

    @property
    def num_lanes(self) -> int:
        lanes: int = getattr(self, self.wide)
        return lanes

    @property
    def is_pool(self) -> bool:
        return True

    @property
    def tilts(self) -> bool:
        return self.proposal == "tilt"

    @abstractmethod
    def sift(self, pool: Sequence[Standing], uniform: float, figures: dict[str, float]) -> list[int]:
        """Which sequence each goes on as; one that others go on as goes on as itself. figures: what is
        reported of the reply, kept from one call to the next. uniform: in (0, 1)."""

    @property
    def nums_of_replies(self) -> tuple[int, ...]:
        """How many of its sequences can be asked for, by `n`."""
        return (1,)

    @abstractmethod
    def pick(
        self, pool: Sequence[Standing], num: int, uniform: float, figures: dict[str, float]
    ) -> dict[int, dict[str, float]]:
        """The sequences that are the replies, so many, once all are over, and what is reported of each."""


def spread(survivors: Sequence[int], counts: Sequence[int]) -> list[int]:
    """Parents of all places: survivor s has counts[s], its own and those of the dead."""
    parents = [i if counts[i] else -1 for i in range(len(counts))]
    extra = [i for i in survivors for _ in range(counts[i] - 1)]
    return [parent if parent >= 0 else extra.pop(0) for parent in parents]
