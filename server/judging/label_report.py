"""What a labelling run is reported as."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

from trimtab.server.judging.compare import Outcome
from trimtab.server.judging.constitution import Constitution


@dataclass(frozen=True, slots=True)
class Tally:
    """num_judged: comparisons answered in both orders. disagreement: share of which the orders disagree.
    first_position: mean probability of the reply shown first; ½ is a judge without a liking for a position.
    Both None where nothing was judged."""

    num_judged: int
    num_disagreed: int
    disagreement: float | None
    first_position: float | None

    @classmethod
    def of(cls, judged: Sequence[Outcome]) -> Tally:
        if not judged:
            return cls(0, 0, None, None)
        disagreed = sum(not outcome.agrees for outcome in judged)
        first = fmean((outcome.forward + outcome.backward) / 2 for outcome in judged)
        return cls(len(judged), disagreed, disagreed / len(judged), first)


def by_principle(judged: Sequence[Outcome], constitution: Constitution) -> list[tuple[str, Tally]]:
    """(text, tally) of each principle, in the constitution's order."""
    return [
        (principle.text, Tally.of([o for o in judged if o.comparison.principle == number]))
        for number, principle in enumerate(constitution.principles)
    ]


def to_lines(total: Tally, principles: Sequence[tuple[str, Tally]]) -> list[str]:
    """For a terminal."""
    rows = [("all", total), *principles] if len(principles) > 1 else [("all", total)]
    return [f"  {_percent(tally.disagreement)} of {tally.num_judged:6}  {name}" for name, tally in rows]


def to_json(tally: Tally) -> dict[str, Any]:
    return {name: getattr(tally, name) for name in Tally.__slots__}


def _percent(share: float | None) -> str:
    return "    -" if share is None else f"{share:5.1%}"
