"""What a scorer says of one reply, and the one interface of all scorers."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Literal, Protocol

from trimtab.server.scoring.rollout import RolloutRow

OnBadScores = Literal["refuse", "skip"]


@dataclass(frozen=True, slots=True)
class Score:
    """reward: of the reply. token_rewards: one per drawn token, then reward is their sum. problem: why there
    is neither."""

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
    """units: what the numbers mean, for the file that they are written to."""

    @property
    def units(self) -> str: ...

    def score(self, rows: Sequence[RolloutRow]) -> list[Score]:
        """One score per row, in order. What one reply cannot be given is a problem of its score; raises only
        for what would hit every reply."""
        ...


@dataclass(slots=True)
class ScoreCount:
    """How scoring went. num_bad: replies without a reward; first_bad says which is the first, and why."""

    num_rows: int = 0
    num_bad: int = 0
    first_bad: str = ""

    def take(self, row: RolloutRow, problem: str) -> None:
        """problem: why the row has no reward; "" where it has one."""
        self.num_rows += 1
        self.num_bad += bool(problem)
        if problem and not self.first_bad:
            self.first_bad = f"prompt {row.prompt_id} sample {row.sample}: {problem}"

    def __str__(self) -> str:
        return f"{self.num_bad} of {self.num_rows} replies have no score, first {self.first_bad}"


def apply(scorer: Scorer, rows: Sequence[RolloutRow], count: ScoreCount) -> Iterator[RolloutRow]:
    """The rows with the scorer's rewards in place of what they had; problems are counted."""
    for row, score in zip(rows, scorer.score(rows), strict=True):
        count.take(row, score.problem)
        yield replace(row, reward=score.reward, token_rewards=score.token_rewards)
