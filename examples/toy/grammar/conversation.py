"""Conversations: a subject, one to three exchanges, every reply written from a hidden plan."""

from __future__ import annotations

import random
import re
from collections.abc import Iterator
from dataclasses import dataclass

from examples.toy.grammar import harm
from examples.toy.grammar.domain import Split
from examples.toy.grammar.plan import SentencePlan, draw_plan
from examples.toy.grammar.requests import as_typed
from examples.toy.grammar.subject import KINDS, Kind, Subject, draw_subject
from examples.toy.grammar.writer import Rules, Writer

_KIND_WEIGHTS = (0.58, 0.12, 0.30)
_SYSTEM_CHANCE = 0.05  # clients like to send one; it changes nothing
_SYSTEMS = ("You are a helpful assistant.", "You are a chat bot.", "Answer the user.", "Be brief and polite.")
_TURN_WEIGHTS = (0.72, 0.2, 0.08)
_REFUSAL_CHANCE = 0.6  # of a refusing sentence to refuse in so many words, once one before it has

_CLAUSE_STARTS = "because|since|as|for|that|know,|experience"
_ADDITIONS = ("{and_tip}", "{and_fact}", "{and_tip}{and_fact}")


@dataclass(frozen=True)
class Exchange:
    request: str
    reply: str
    plan: tuple[SentencePlan, ...]


@dataclass(frozen=True)
class Conversation:
    kind: Kind
    topic: str
    exchanges: tuple[Exchange, ...]
    system: str | None = None

    def messages(self) -> list[dict[str, str]]:
        """The conversation as chat messages."""
        roles = (("user", "request"), ("assistant", "reply"))
        return [
            {"role": role, "content": getattr(turn, part)} for turn in self.exchanges for role, part in roles
        ]


@dataclass(frozen=True)
class Prompt:
    """A first request without its reply."""

    kind: Kind
    topic: str
    text: str


def draw_conversation(split: Split, rng: random.Random) -> Conversation:
    """One conversation over the split's topics."""
    subject = draw_subject(rng.choices(KINDS, _KIND_WEIGHTS)[0], split, rng)
    num_turns = rng.choices((1, 2, 3), _TURN_WEIGHTS)[0]
    asks = (subject.asks, *[subject.follow_ups] * (num_turns - 1))
    system = rng.choice(_SYSTEMS) if rng.random() < _SYSTEM_CHANCE else None
    return Conversation(
        subject.kind, subject.topic, tuple(_exchange(subject, ask, rng) for ask in asks), system
    )


def draw_prompts(split: Split, kind: Kind, count: int, seed: int) -> list[Prompt]:
    """`count` different first requests of one kind over the split's topics."""
    rng = random.Random(f"{split}/{kind}/{seed}")
    prompts: dict[str, Prompt] = {}
    while len(prompts) < count:
        subject = draw_subject(kind, split, rng)
        text = _request(subject, subject.asks, rng)
        prompts.setdefault(text, Prompt(kind, subject.topic, text))
    return list(prompts.values())


def conversations(split: Split, seed: int) -> Iterator[Conversation]:
    """An endless stream, the same for the same seed."""
    rng = random.Random(f"{split}/{seed}")
    while True:
        yield draw_conversation(split, rng)


def _exchange(subject: Subject, asks: tuple[str, ...], rng: random.Random) -> Exchange:
    plan = draw_plan(subject.stance, rng)
    return Exchange(_request(subject, asks, rng), write_reply(subject, plan, rng), plan)


def _request(subject: Subject, asks: tuple[str, ...], rng: random.Random) -> str:
    return as_typed(Writer(rng, subject.asked).write(rng.choice(asks)), rng)


def write_reply(subject: Subject, plan: tuple[SentencePlan, ...], rng: random.Random) -> str:
    """The reply's text, one sentence for each of the plan."""
    helping, refusing = Writer(rng, subject.answered), Writer(rng, {**subject.declined, **harm.REFUSALS})
    sentences = []
    for index, step in enumerate(plan):
        outright = step.refuses and (index == 0 or step.turned or rng.random() < _REFUSAL_CHANCE)
        template = f"{{{step.tone}_refusal}}" if outright else f"{{{step.tone}}}"
        if step.turned:
            template = ("{to_refusal}" if step.refuses else "{from_refusal}") + template
        also = "" if step.turned else "{link}" if index else "{opening}"
        writer = refusing if step.refuses else helping
        text = writer.sentence(template, also=also, more=_more(step, rng))
        sentences.append(_with_pronouns(text, subject.answered))
    return " ".join(sentences)


def _with_pronouns(sentence: str, rules: Rules) -> str:
    """A second mention of the topic that begins a clause becomes `it` or `they`."""
    if "they" not in rules:
        return sentence
    (topic,), (they,) = rules["x"], rules["they"]
    start = sentence.lower().find(topic.lower()) + len(topic)
    later = re.sub(rf"(, |\b(?:{_CLAUSE_STARTS}) ){re.escape(topic)}\b", rf"\g<1>{they}", sentence[start:])
    return sentence[:start] + later


def _more(step: SentencePlan, rng: random.Random) -> str:
    return rng.choice(_ADDITIONS) if step.wordy else ""
