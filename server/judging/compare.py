"""Pairs put to a judge in both orders, by one principle or by all, and what comes of it."""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from trimtab.server.judging.answers import Question
from trimtab.server.judging.candidates import Candidates, Pair
from trimtab.server.judging.client import FailureError
from trimtab.server.judging.constitution import Constitution
from trimtab.server.judging.questions import choice_question

WhichPrinciples = Literal["draw", "all"]
OnDisagreement = Literal["drop", "tie"]


@dataclass(frozen=True, slots=True)
class Comparison:
    """One pair by one principle, by its index."""

    pair: Pair
    principle: int


@dataclass(frozen=True, slots=True)
class Outcome:
    """forward: probability of A, the pair's first reply, in its own order; backward: of A, then the second
    one, in the other order."""

    comparison: Comparison
    forward: float
    backward: float

    @property
    def agrees(self) -> bool:
        """Whether both orders prefer the same reply."""
        return (self.forward - 0.5) * (0.5 - self.backward) > 0

    @property
    def preference(self) -> float:
        """For the first reply, 0…1: a liking for either position cancels."""
        return 0.5 + (self.forward - self.backward) / 2


def draw_comparisons(
    pairs: Iterable[Pair], constitution: Constitution, which: WhichPrinciples, seed: int
) -> list[Comparison]:
    """Each pair by all principles, or by one, drawn by weight for each pair on its own."""
    numbers = range(len(constitution.principles))
    if which == "all":
        return [Comparison(pair, number) for pair in pairs for number in numbers]
    weights = [principle.weight for principle in constitution.principles]
    return [Comparison(pair, random.Random(f"{seed} {pair}").choices(numbers, weights)[0]) for pair in pairs]


def both_orders(
    comparisons: Iterable[Comparison],
    groups: Sequence[Candidates],
    constitution: Constitution,
    *,
    wants_logprobs: bool,
) -> Iterator[Question]:
    """Two questions to each comparison: its own order, then the other."""
    for comparison in comparisons:
        pair, principle = comparison.pair, constitution.principles[comparison.principle]
        group = groups[pair.group]
        first, second = (group.replies[index].text for index in (pair.first, pair.second))
        for shown in ((first, second), (second, first)):
            yield choice_question(principle, group.prompt, *shown, wants_logprobs=wants_logprobs)


def outcomes(comparisons: Sequence[Comparison], results: Sequence[float | FailureError]) -> list[Outcome]:
    """Of the comparisons whose two questions were both answered."""
    answered = zip(comparisons, results[::2], results[1::2], strict=True)
    return [
        Outcome(comparison, forward, backward)
        for comparison, forward, backward in answered
        if isinstance(forward, float) and isinstance(backward, float)
    ]


def preferences(
    judged: Iterable[Outcome], constitution: Constitution, on_disagreement: OnDisagreement
) -> dict[Pair, float]:
    """For each pair's first reply, 0…1: the mean over its principles by their weights. Where the two orders
    disagree, the comparison is dropped, or counts as a tie."""
    kept: defaultdict[Pair, list[tuple[float, float]]] = defaultdict(list)
    for outcome in judged:
        if outcome.agrees or on_disagreement == "tie":
            weight = constitution.principles[outcome.comparison.principle].weight
            kept[outcome.comparison.pair].append((weight, outcome.preference if outcome.agrees else 0.5))
    return {
        pair: sum(weight * value for weight, value in entries) / sum(weight for weight, _ in entries)
        for pair, entries in kept.items()
    }


def win_rates(preferred: Mapping[Pair, float]) -> dict[tuple[int, int], float]:
    """Mean preference of each reply, by (group, index), over the pairs that it stands in."""
    wins: defaultdict[tuple[int, int], list[float]] = defaultdict(list)
    for pair, value in preferred.items():
        wins[pair.group, pair.first].append(value)
        wins[pair.group, pair.second].append(1 - value)
    return {reply: sum(values) / len(values) for reply, values in wins.items()}
