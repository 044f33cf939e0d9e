from __future__ import annotations

import itertools
import random
import re

import pytest

from examples.toy.grammar import harm
from examples.toy.grammar.conversation import Conversation, conversations, draw_prompts
from examples.toy.grammar.domain import SPLITS
from examples.toy.grammar.domains import DOMAINS
from examples.toy.grammar.plan import HARMFUL, MAX_SENTENCES, draw_plan
from examples.toy.grammar.subject import KINDS
from examples.toy.grammar.writer import Writer


@pytest.fixture(scope="module")
def drawn() -> list[Conversation]:
    return list(itertools.islice(conversations("lm", seed=5), 3000))


def replies(drawn: list[Conversation]) -> list[str]:
    return [turn.reply for conversation in drawn for turn in conversation.exchanges]


def test_the_same_seed_writes_the_same_conversations() -> None:
    first, second = (list(itertools.islice(conversations("lm", seed=3), 50)) for _ in range(2))
    assert first == second
    assert first != list(itertools.islice(conversations("lm", seed=4), 50))


def test_no_noun_is_in_two_splits() -> None:
    nouns = {split: {noun for d in DOMAINS for noun, _ in d.nouns(split)} for split in SPLITS}
    for one, other in itertools.combinations(SPLITS, 2):
        assert not nouns[one] & nouns[other]
    for group in harm.NOUNS.values():
        assert len(set(group)) == len(group)


@pytest.mark.slow
def test_no_noun_of_the_other_splits_occurs_in_the_training(drawn: list[Conversation]) -> None:
    text = " ".join(m["content"].lower() for c in drawn for m in c.messages())
    unseen = {noun.lower() for d in DOMAINS for split in SPLITS[1:] for noun, _ in d.nouns(split)}
    assert len(unseen) >= 300
    assert not {noun for noun in unseen if re.search(rf"\b{noun}\b", text)}


def test_replies_have_one_sentence_for_each_of_the_plan(drawn: list[Conversation]) -> None:
    for conversation in drawn:
        for turn in conversation.exchanges:
            assert turn.reply.count(".") == len(turn.plan)
            assert 1 <= len(turn.plan) <= MAX_SENTENCES


def test_everything_is_expanded(drawn: list[Conversation]) -> None:
    text = " ".join(m["content"] for c in drawn for m in c.messages())
    assert not set("[]{}|") & set(text)
    assert "  " not in text
    assert " ," not in text


def test_replies_rarely_repeat(drawn: list[Conversation]) -> None:
    texts = replies(drawn)
    assert len(set(texts)) > 0.95 * len(texts)


def test_tone_persists_from_sentence_to_sentence_about_seven_times_in_ten() -> None:
    rng = random.Random(0)
    plans = [draw_plan(HARMFUL, rng) for _ in range(4000)]
    steps = [(a.tone, b.tone) for plan in plans for a, b in itertools.pairwise(plan)]
    assert sum(a == b for a, b in steps) / len(steps) == pytest.approx(0.7, abs=0.02)


def test_compliance_can_turn_into_refusal_late() -> None:
    rng = random.Random(0)
    plans = [draw_plan(HARMFUL, rng) for _ in range(2000)]
    late = [p for p in plans if not p[0].refuses and p[-1].refuses]
    assert len(late) > 0.1 * len(plans)
    assert all(any(step.turned for step in plan) for plan in late)


def test_only_requests_that_are_or_sound_harmful_are_refused(drawn: list[Conversation]) -> None:
    refused = dict.fromkeys(KINDS, 0)
    for conversation in drawn:
        refused[conversation.kind] += any(s.refuses for turn in conversation.exchanges for s in turn.plan)
    assert refused["everyday"] == 0
    assert refused["risky"] > 0
    assert refused["harmful"] > 0


def test_replies_name_the_topic_of_the_request(drawn: list[Conversation]) -> None:
    everyday = [c for c in drawn if c.kind == "everyday"]
    named = sum(c.topic in turn.reply.lower() for c in everyday for turn in c.exchanges)
    assert named > 0.5 * sum(len(c.exchanges) for c in everyday)


@pytest.mark.parametrize("kind", KINDS)
def test_prompts_are_different_and_the_same_for_a_seed(kind: str) -> None:
    prompts = draw_prompts("test", kind, 100, seed=1)  # type: ignore[arg-type]
    assert len({prompt.text for prompt in prompts}) == 100
    assert prompts == draw_prompts("test", kind, 100, seed=1)  # type: ignore[arg-type]


def test_a_writer_uses_every_alternative_before_it_repeats_one() -> None:
    writer = Writer(random.Random(0), {"tip": ("a", "b", "c")})
    assert sorted(writer.write("{tip}") for _ in range(3)) == ["a", "b", "c"]


def test_a_writer_expands_choices_inside_choices() -> None:
    rng = random.Random(0)
    seen = {Writer(rng, {"x": ("z",)}).write("[a[1|2]|{x}]") for _ in range(60)}
    assert seen == {"a1", "a2", "z"}


def test_a_writer_names_an_unknown_rule() -> None:
    with pytest.raises(KeyError, match="nothing"):
        Writer(random.Random(0), {}).write("{nothing}")
