"""Subject of a conversation: how its user asks, and the rules by which replies answer or decline."""

from __future__ import annotations

import random
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Literal

from examples.toy.grammar import harm, requests
from examples.toy.grammar.domain import Split, Topic, draw_topic, usual_topic
from examples.toy.grammar.domains import ANYTHING, DOMAINS
from examples.toy.grammar.plan import HARMFUL, HELPFUL, RISKY_SOUNDING, Stance
from examples.toy.grammar.tone import FRAMES, SHARED
from examples.toy.grammar.writer import Rules, chosen

Kind = Literal["everyday", "risky", "harmful"]
KINDS: tuple[Kind, ...] = ("everyday", "risky", "harmful")
_RISKY_DOMAINS = tuple(domain for domain in DOMAINS if domain.risky)
_GREETING_CHANCE = 0.6


@dataclass(frozen=True)
class Subject:
    """asks and follow_ups are the user's templates, over the rules `asked`; replies use `answered` where they
    go along with the request and `declined` where they refuse it."""

    kind: Kind
    topic: str
    stance: Stance
    asks: tuple[str, ...]
    follow_ups: tuple[str, ...]
    asked: Rules
    answered: Rules
    declined: Rules


def draw_subject(kind: Kind, split: Split, rng: random.Random) -> Subject:
    """A subject of the kind whose nouns belong to the split."""
    return _DRAW[kind](split, rng)


def _everyday(split: Split, rng: random.Random) -> Subject:
    topic = draw_topic(rng.choice(DOMAINS), split, rng)
    asks = rng.choice(
        (requests.ABOUT_TASK, requests.ABOUT_TASK, requests.ABOUT_PROBLEM, requests.ABOUT_TOPIC)
    )
    if topic.is_invented and asks is requests.ABOUT_TOPIC:
        topic = replace(topic, domain=ANYTHING)
    greetings = requests.GREETINGS.get(topic.domain.name)
    if greetings and split == "lm" and rng.random() < _GREETING_CHANCE:
        topic, asks = usual_topic(topic.domain), greetings
    task = chosen(rng.choice(topic.domain.tasks), rng)
    asked, answered = _rules_of(topic, task)
    return Subject("everyday", topic.noun, HELPFUL, asks, requests.FOLLOW_UPS, asked, answered, {})


def _risky(split: Split, rng: random.Random) -> Subject:
    topic = draw_topic(rng.choice(_RISKY_DOMAINS), split, rng)
    asked, answered = _rules_of(topic, chosen(rng.choice(topic.domain.risky), rng))
    answered = {**answered, "from_refusal": harm.COMPLY["from_refusal"]}
    declined: Rules = {**answered, **harm.CAUTION, "deed": ("that", "{x}", "this", "such a thing")}
    return Subject(
        "risky",
        topic.noun,
        RISKY_SOUNDING,
        requests.ABOUT_TASK,
        requests.FOLLOW_UPS,
        asked,
        answered,
        declined,
    )


def _harmful(split: Split, rng: random.Random) -> Subject:
    deed = harm.draw_deed(split, rng)
    goal, x = (_to_you(deed.asked),), (deed.named, "that", deed.named, "this")
    answered: Rules = {**SHARED, **FRAMES, **harm.COMPLY, "goal": goal, "x": x}
    declined: Rules = {
        **SHARED,
        **FRAMES,
        **harm.REDIRECT,
        "goal": harm.BETTER_GOALS,
        "x": harm.BETTER_WAYS,
        "deed": (deed.named, "that"),
    }
    asked: Rules = {**harm.COMPLY, "task": (deed.asked,), "x": (deed.named,)}
    return Subject(
        "harmful",
        deed.named,
        HARMFUL,
        requests.ABOUT_TASK,
        requests.HARMFUL_FOLLOW_UPS,
        asked,
        answered,
        declined,
    )


_DRAW = {"everyday": _everyday, "risky": _risky, "harmful": _harmful}


def _rules_of(topic: Topic, task: str) -> tuple[Rules, Rules]:
    domain = topic.domain
    asked = _bound(topic.asked)
    answered = _bound(topic.answered)
    content: Rules = {"tip": domain.tips, "fact": domain.facts, "problem": domain.problems}
    return (
        {**content, **asked, "task": (task,)},
        {**SHARED, **FRAMES, **content, **answered, "goal": (_to_you(task),)},
    )


def _bound(values: Mapping[str, str]) -> Rules:
    return {name: (value,) for name, value in values.items()}


def _to_you(text: str) -> str:
    swap = {"my": "your", "I": "you", "me": "you", "myself": "yourself"}
    return " ".join(swap.get(word, word) for word in text.split())
