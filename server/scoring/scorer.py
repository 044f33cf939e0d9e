"""Scorer: the one interface of all scorers, and the score that they give a reply."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Literal, Protocol

from trimtab.guidance.data.rollouts import RolloutRow

OnBadScores = Literal["refuse", "skip"]


@dataclass(frozen=True, slots=True)
class Score:
    """reward: of the reply. token_rewards: one per drawn token, then reward is their sum. problem: why there
    is neither; "" where the scorer left the reply without a reward on purpose."""

    reward: float | None
    token_rewards: tuple[float, ...] | None = None
    problem: str = ""

    @classmethod
    def of_tokens(cls, rewards: Sequence[float]) -> Score:
        return cls(math.fsum(rewards), tuple(rewards))

    @classmethod
    def none(cls, problem: str) -> Score:
        return cls(None, None, problem)


class Scorer(Protocol):
    """units: what the numbers mean, for the file that they are written to. rows_at_once: that it is best
    handed, and whose scores are then kept."""

    @property
    def units(self) -> str: ...
    @property
    def rows_at_once(self) -> int: ...

    def score(self, rows: Sequence[RolloutRow]) -> list[Score]:
        """One score per row, in order. What one reply cannot be given is a problem of its score; raises only
        for what would hit every reply."""
        ...


@dataclass(slots=True)
class ScoreCount:
    """How scoring went. num_bad: replies that could not be scored; first_bad says which is the first, and
    why. num_left: those that the scorer left without a reward on purpose."""

    num_rows: int = 0
    num_bad: int = 0
    first_bad: str = ""
    num_left: int = 0

    def take(self, row: RolloutRow, score: Score) -> None:
        problem = score.problem
        self.num_rows += 1
        self.num_bad += bool(problem)
        self.num_left += score.reward is None and not problem
        if problem and not self.first_bad:
            self.first_bad = f"prompt {row.prompt_id} sample {row.sample}: {problem}"

    def __str__(self) -> str:
        if not self.num_bad:
            return f"the scorer left {self.num_left} of {self.num_rows} replies without a reward"
        return f"{self.num_bad} of {self.num_rows} replies have no score, first {self.first_bad}"


def apply(scores: Sequence[Score], rows: Sequence[RolloutRow], count: ScoreCount) -> Iterator[RolloutRow]:
    """The rows with these rewards in place of what they had; problems are counted."""
    for row, score in zip(rows, scores, strict=True):
        count.take(row, score)
        yield replace(row, reward=score.reward, token_rewards=score.token_rewards)
