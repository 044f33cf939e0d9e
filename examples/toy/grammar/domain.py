"""Domain that one can talk about: its nouns, what people want of them, and what there is to say."""

from __future__ import annotations

import random
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from examples.toy.grammar.writer import listed

Split = Literal["lm", "preferences", "test"]
SPLITS: tuple[Split, ...] = ("lm", "preferences", "test")
Number = Literal["mass", "plural", "count"]

SPLIT_OF_REMAINDER: Mapping[int, Split] = {0: "lm", 1: "lm", 2: "preferences", 3: "lm", 4: "test"}
_SINGULAR = {"it": "it", "they": "it", "is": "is", "has": "has", "does": "does", "s": "s", "es": "es"}
_PLURAL = {"it": "them", "they": "they", "is": "are", "has": "have", "does": "do", "s": "", "es": ""}

INVENTED_CHANCE = 0.2
_ADJECTIVE_CHANCE = 0.25
_ADJECTIVES = listed(
    "old, new, small, cheap, simple, little, other, special, plain, local, expensive, first, big, second, "
    "nice, unusual, modern, strange, perfect, ordinary"
)
_ONSETS = listed(
    "b, br, d, dr, f, fl, g, gl, gr, h, j, k, kl, l, m, n, p, pl, r, s, sk, st, t, tr, v, w, z, ch, sh"
)
_VOWELS = listed("a, e, i, o, u, ee, oo, ai, ou")
_MIDDLES = listed("b, d, g, k, l, m, n, p, r, s, t, v, z, nd, lv, rt, mb, st, ll, ck, nt, sh, ch, lm, rn")
_ENDINGS = listed("n, l, r, x, t, nd, sk, ng, m, p, st, ck, th, ld, rn")


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
    is_invented: bool
    asked: Mapping[str, str]
    answered: Mapping[str, str]


def draw_topic(domain: Domain, split: Split, rng: random.Random) -> Topic:
    """A noun of the split. What a user calls `my guitar` or `a guitar` is `your guitar` or `the guitar` to
    a reply. Some nouns of the training are invented, so that the policy learns to take up any word."""
    noun, number = rng.choice(domain.nouns(split))
    is_invented = split == "lm" and rng.random() < INVENTED_CHANCE
    if is_invented:
        noun = invent_noun(rng) + ("s" if number == "plural" else "")
    phrase = f"{rng.choice(_ADJECTIVES)} {noun}" if rng.random() < _ADJECTIVE_CHANCE else noun
    asked, answered = _mentions(phrase, number, rng)
    agreement = _PLURAL if number == "plural" else _SINGULAR
    return Topic(domain, noun, is_invented, {**agreement, "x": asked}, {**agreement, "x": answered})


def usual_topic(domain: Domain) -> Topic:
    """The domain's first count noun, of the training: what a greeting is about."""
    noun = domain.count[0]
    return Topic(domain, noun, False, {**_SINGULAR, "x": f"my {noun}"}, {**_SINGULAR, "x": f"your {noun}"})


def _mentions(phrase: str, number: Number, rng: random.Random) -> tuple[str, str]:
    if number == "count" and rng.random() < 0.4:
        return f"{'an' if phrase[0] in 'aeiou' else 'a'} {phrase}", f"the {phrase}"
    if number == "count" or (number == "plural" and rng.random() < 0.4):
        return f"my {phrase}", f"your {phrase}"
    return phrase, phrase


def invent_noun(rng: random.Random) -> str:
    """A word that nobody knows, such as `brolvan`."""
    return "".join(rng.choice(part) for part in (_ONSETS, _VOWELS, _MIDDLES, _VOWELS, _ENDINGS))
