"""Replies to the same prompt, of which a judge is asked which is the better."""

from __future__ import annotations

import itertools
import random
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from trimtab.guidance.data.rows import Ranking, Rollout
from trimtab.guidance.text.encoding import Sampled
from trimtab.guidance.text.message import Prompt


@dataclass(frozen=True, slots=True)
class Reply:
    """sampled: its tokens, where they are known."""

    text: str
    sampled: Sampled | None = None


@dataclass(frozen=True, slots=True)
class Candidates:
    """At least two different replies."""

    prompt: Prompt
    replies: tuple[Reply, ...]


def from_rollouts(rows: Iterable[Rollout]) -> list[Candidates]:
    """Prompts in the order of the rows; see gather."""
    return gather((row.prompt, Reply(row.completion, row.sampled)) for row in rows)


def from_rankings(rows: Iterable[Ranking]) -> list[Candidates]:
    """The ranks that stand there are not read."""
    return gather(
        (row.prompt, Reply(text, row.sampled[index] if row.sampled else None))
        for row in rows
        for index, text in enumerate(row.responses)
    )


def gather(replies: Iterable[tuple[Prompt, Reply]]) -> list[Candidates]:
    """By prompt, each text once; a reply without text, and a prompt with fewer than two, is left out."""
    groups: defaultdict[Prompt, dict[str, Reply]] = defaultdict(dict)
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
