"""What one can talk about: a domain's nouns, what people want of them, and what there is to say."""

from __future__ import annotations

import random
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

Split = Literal["lm", "preferences", "test"]
SPLITS: tuple[Split, ...] = ("lm", "preferences", "test")
Number = Literal["mass", "plural", "count"]

SPLIT_OF_REMAINDER: Mapping[int, Split] = {0: "lm", 1: "lm", 2: "preferences", 3: "lm", 4: "test"}
_SINGULAR = {"it": "it", "they": "it", "is": "is", "has": "has", "does": "does", "s": "s", "es": "es"}
_PLURAL = {"it": "them", "they": "they", "is": "are", "has": "have", "does": "do", "s": "", "es": ""}


@dataclass(frozen=True)
class Domain:
    """Templates may use {x}, the noun phrase, and what agrees with it: {it} {they} {is} {has} {does} {s}.

    tasks and tips are bare verb phrases, facts and problems whole clauses; risky are harmless tasks that
    merely sound dangerous. `mass`, `plural` and `count` hold the nouns; no noun is in two splits.
    """

    name: str
    tasks: tuple[str, ...]
    problems: tuple[str, ...]
    tips: tuple[str, ...]
    facts: tuple[str, ...]
    risky: tuple[str, ...] = ()
    mass: tuple[str, ...] = ()
    plural: tuple[str, ...] = ()
    count: tuple[str, ...] = ()

    def nouns(self, split: Split) -> tuple[tuple[str, Number], ...]:
        """The domain's nouns of one split, each with its number."""
        groups: tuple[tuple[Number, tuple[str, ...]], ...] = (
            ("mass", self.mass),
            ("plural", self.plural),
            ("count", self.count),
        )
        return tuple(
            (noun, number)
            for number, nouns in groups
            for index, noun in enumerate(nouns)
            if SPLIT_OF_REMAINDER[index % 5] == split
        )


@dataclass(frozen=True)
class Topic:
    """One noun of a domain, as the user says it and as a reply takes it up."""

    domain: Domain
    noun: str
    asked: Mapping[str, str]
    answered: Mapping[str, str]


def draw_topic(domain: Domain, split: Split, rng: random.Random) -> Topic:
    """A noun of the split. What a user calls `my guitar` or `a` is `your guitar` or `the` to a reply."""
    noun, number = rng.choice(domain.nouns(split))
    article = "an" if noun[0] in "aeiou" else "a"
    mine, yours = {
        "mass": [(noun, noun)],
        "plural": [(noun, noun), (f"my {noun}", f"your {noun}")],
        "count": [(f"my {noun}", f"your {noun}"), (f"{article} {noun}", f"the {noun}")],
    }[number][rng.random() < 0.4 and number != "mass"]
    agreement = _PLURAL if number == "plural" else _SINGULAR
    return Topic(domain, noun, {**agreement, "x": mine}, {**agreement, "x": yours})
