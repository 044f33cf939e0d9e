"""Pairs put to a judge in both orders, by one principle or by all, and what comes of it."""

from __future__ import annotations

import itertools
import random
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any, Literal

from trimtab.guidance.data.rows import Ranking, Rollout
from trimtab.guidance.text.encoding import Sampled
from trimtab.guidance.text.message import Prompt
from trimtab.server.judging.answers import Question
from trimtab.server.judging.client import FailureError
from trimtab.server.judging.constitution import Constitution
from trimtab.server.judging.questions import choice_question


@dataclass(frozen=True, slots=True)
class Candidate:
    """sampled: its tokens, where they are known."""

    text: str
    sampled: Sampled | None = None


@dataclass(frozen=True, slots=True)
class Candidates:
    """At least two different replies."""

    prompt: Prompt
    replies: tuple[Candidate, ...]


def from_rollouts(rows: Iterable[Rollout]) -> list[Candidates]:
    """Prompts in the order of the rows; see gather."""
    return gather((row.prompt, Candidate(row.completion, row.sampled)) for row in rows)


def from_rankings(rows: Iterable[Ranking]) -> list[Candidates]:
    """The ranks that stand there are not read."""
    return gather(
        (row.prompt, Candidate(text, row.sampled[index] if row.sampled else None))
        for row in rows
        for index, text in enumerate(row.responses)
    )


def gather(replies: Iterable[tuple[Prompt, Candidate]]) -> list[Candidates]:
    """By prompt, each text once; a reply without text, and a prompt with fewer than two, is left out."""
    groups: defaultdict[Prompt, dict[str, Candidate]] = defaultdict(dict)
    for prompt, reply in replies:
        if reply.text.strip():
            groups[prompt].setdefault(reply.text, reply)
    return [Candidates(prompt, tuple(texts.values())) for prompt, texts in groups.items() if len(texts) > 1]


@dataclass(frozen=True, slots=True)
class Pair:
    """group: index of the candidates. first, second: indices of its replies, first < second."""

    group: int
    first: int
    second: int


def draw_pairs(groups: Sequence[Candidates], per_prompt: int | None, seed: int) -> list[Pair]:
    """Every pair of each prompt's replies, or per_prompt of them, drawn for each prompt on its own."""
    pairs = []
    for number, group in enumerate(groups):
        drawn = list(itertools.combinations(range(len(group.replies)), 2))
        if per_prompt is not None and per_prompt < len(drawn):
            drawn = sorted(random.Random(f"{seed} {number}").sample(drawn, per_prompt))
        pairs += [Pair(number, first, second) for first, second in drawn]
    return pairs


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
