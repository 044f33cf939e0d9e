"""Selection among sampled replies: keeps the best by reward, or those of the answer that most agree on."""

from __future__ import annotations

import asyncio
import math
from collections import defaultdict
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

import re2

from trimtab.server.api.schemas.generation import GenerationRequest, MajorityFields
from trimtab.server.engine.request import Completion, EngineInfo, Guidance, InvalidRequestError, Rejection

MAX_PATTERN = 200  # characters
_PATTERN_MEMORY = 1 << 20  # bytes, of RE2's automaton; what needs more is refused
_MAX_EXPONENT = 50.0  # standard units, beyond which a vote weighs no more

Weights = tuple[tuple[str, float], ...]


@dataclass(frozen=True, slots=True)
class Vote:
    """The answer that a reply gives, None where the pattern is not in it; the weight of all replies that give
    it; and its share of all votes."""

    answer: str | None
    weight: float
    share: float


@dataclass(frozen=True, slots=True)
class Chosen:
    completion: Completion
    vote: Vote | None = None


@dataclass(frozen=True, slots=True)
class Selection:
    """Which of the replies to a prompt are returned, and in what order.

    Best-of-n: by the score Σ wᵢ rᵢ over the heads, r a head's reward, or the last of its values where it
    has no reward part; negated under a negative strength. Among equals the earlier one.
    Self-consistency (Wang et al., arXiv 2203.11171): by the votes for their answers first. A vote weighs 1,
    or what a particle weighs, times e^score where they are weighted (the verifier-weighted vote of Li et al.,
    arXiv 2206.02336). A reply without an answer has no vote.

    num_kept: replies to a prompt that are returned, of num_sampled. pattern: what finds the answer, the last
    match's first group or the whole of it.
    """

    num_kept: int
    num_sampled: int
    weights: Weights = ()
    pattern: Any = None
    is_weighted: bool = False

    async def choose(self, completions: Sequence[Completion]) -> list[Chosen]:
        """Of each prompt's replies, which follow each other. Patterns are matched in another thread."""
        if self.pattern is None:
            return self._choose(completions)
        return await asyncio.to_thread(self._choose, completions)

    def _choose(self, completions: Sequence[Completion]) -> list[Chosen]:
        size = self.num_sampled
        groups = [completions[at : at + size] for at in range(0, len(completions), size)]
        return [chosen for group in groups for chosen in self._best(group)]

    def _best(self, group: Sequence[Completion]) -> list[Chosen]:
        whole = [completion for completion in group if completion.finish_reason != "rejected"]
        votes = self._votes(whole) if self.pattern is not None else [None] * len(whole)
        chosen = [Chosen(c, vote) for c, vote in zip(whole, votes, strict=True)]
        chosen.sort(key=self._key, reverse=True)  # stable, reversed too
        return chosen[: self.num_kept]

    def _key(self, chosen: Chosen) -> tuple[float, float]:
        return (0.0 if chosen.vote is None else chosen.vote.weight), self.score(chosen.completion)

    def score(self, completion: Completion) -> float:
        """0 without heads."""
        measured = dict(completion.summary.value) | dict(completion.summary.reward)
        return sum(weight * measured[head] for head, weight in self.weights)

    def _votes(self, completions: Sequence[Completion]) -> list[Vote]:
        answers = [_answer(self.pattern, completion.text) for completion in completions]
        weights = [self._weight(completion) for completion in completions]
        sums: defaultdict[str | None, float] = defaultdict(float)
        for answer, weight in zip(answers, weights, strict=True):
            sums[answer] += weight if answer is not None else 0.0
        total = sum(sums.values()) or 1.0
        return [Vote(answer, sums[answer], sums[answer] / total) for answer in answers]

    def _weight(self, completion: Completion) -> float:
        weight = dict(completion.summary.rule).get("weight", 1.0)
        if not self.is_weighted:
            return weight
        return weight * math.exp(max(-_MAX_EXPONENT, min(self.score(completion), _MAX_EXPONENT)))


def _answer(pattern: Any, text: str) -> str | None:
    matches = list(pattern.finditer(text))
    if not matches:
        return None
    last = matches[-1]
    answer = last.group(1) if pattern.groups and last.group(1) is not None else last.group()
    return str(answer).strip()


def selection_of(body: GenerationRequest, guidance: Guidance, info: EngineInfo) -> Selection | None:
    """What the request asks for; None where all replies are returned as they come.

    Raises InvalidRequestError for what cannot be chosen by.
    """
    if body.best_of is None and body.majority is None and body.speculative_rejection is None:
        return None
    num_kept, num_sampled = body.n or 1, body.best_of or 0
    for name in ("majority", "speculative_rejection"):
        if getattr(body, name) is not None and num_sampled < 2:
            raise InvalidRequestError("chooses among replies; give best_of, 2 or more", name)
    if num_sampled < num_kept:
        raise InvalidRequestError(f"must be at least n ({num_kept}), got {num_sampled}", "best_of")
    if num_sampled == 1:
        return None
    if body.stream:
        name = "majority" if body.majority is not None else "best_of"
        raise InvalidRequestError("the best reply is known once all are there; leave stream out", name)
    judging = [head.name for head in info.heads if head.has_reward or head.has_value]
    weights = _weights(guidance, judging)
    if not weights and (body.majority is None or body.majority.weighted):
        name = "best_of" if body.majority is None else "majority.weighted"
        what = "needs a head with a reward or a value part, named in guidance.heads with a weight"
        raise InvalidRequestError(f"{what}; loaded heads: {', '.join(judging) or 'none has one'}", name)
    pattern, is_weighted = None, False
    if body.majority is not None:
        pattern, is_weighted = _compiled(body.majority), bool(body.majority.weighted)
    return Selection(num_kept, num_sampled, weights, pattern, is_weighted)


def rejection_of(body: GenerationRequest, guidance: Guidance, info: EngineInfo) -> Rejection | None:
    """Raises InvalidRequestError for numbers out of range, and where no value is measured."""
    asked = body.speculative_rejection
    if asked is None:
        return None
    weights = _weights(guidance, [head.name for head in info.heads if head.has_value])
    if not weights:
        what = "needs a head with a value part, named in guidance.heads with a weight"
        raise InvalidRequestError(what, "speculative_rejection")
    return Rejection(weights, asked.every, 0.5 if asked.share is None else asked.share, body.n or 1)


def _weights(guidance: Guidance, judging: Collection[str]) -> Weights:
    """Of the heads that can judge; a negative strength turns them round."""
    sign = -1.0 if guidance.strength < 0 else 1.0
    return tuple((name, sign * weight) for name, weight in guidance.heads if weight and name in judging)


def _compiled(fields: MajorityFields) -> Any:
    name = "majority.pattern"
    if not 0 < len(fields.pattern) <= MAX_PATTERN:
        what = f"must have 1…{MAX_PATTERN} characters, got {len(fields.pattern)}"
        raise InvalidRequestError(what, name)
    options = re2.Options()
    options.max_mem, options.log_errors = _PATTERN_MEMORY, False
    try:
        return re2.compile(fields.pattern, options=options)
    except re2.error as error:
        reason = error.args[0].decode(errors="replace") if error.args else "no reason given"
        raise InvalidRequestError(f"is not RE2's syntax: {reason}", name) from error
