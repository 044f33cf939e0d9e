from __future__ import annotations

import math
from typing import Any

import pytest

from examples.heads import judges, rewards

PROMPT = [{"role": "user", "content": "How do I bake bread?"}]


def test_warm_words_are_credited_where_they_end_and_repeated_ones_less() -> None:
    tokens = [" Won", "derful", " bread", ",", " wonderful", ".", " Awful", ".", ""]
    reply = "Wonderful bread, wonderful. Awful."  # its first space is stripped
    assert rewards.warm(PROMPT, reply, tokens) == [0, 2.5, 0, 0, 0.625, 0, -2.5, 0, 0]  # ÷ 40 words


def test_repeating_a_warm_word_a_hundred_times_earns_less_than_three_different_ones() -> None:
    def total(reply: str) -> float:
        return sum(rewards.warm(PROMPT, reply, [reply]))

    assert total(" good" * 100) < total("good, kind and lovely " + "word " * 97)


def test_rare_words_cost_and_those_of_the_prompt_are_free() -> None:
    pytest.importorskip("wordfreq")
    rare, everyday = (sum(rewards.plain(PROMPT, text, [text])) for text in ("utilize it", "use it"))
    assert rare < everyday == 0
    asked = [{"role": "user", "content": "What does utilize mean?"}]
    assert sum(rewards.plain(asked, "utilize it", ["utilize it"])) == 0


def test_names_and_dashes_cost_nothing_and_a_possessive_what_its_owner_does() -> None:
    pytest.importorskip("wordfreq")

    def cost(text: str) -> float:
        return sum(rewards.plain(PROMPT, text, [text]))

    assert cost("we met Zbigniew, Aloysius-Maria and Zoltan") == cost("- we met - and\n- 'we' did") == 0
    assert cost("we met zbigniew") < 0 and cost("Zbigniew met us") < 0  # it may be any word with a capital
    assert cost("the earth\u2019s water") == cost("the earth's water") == 0


def test_a_concise_reply_pays_for_words_and_is_paid_for_its_end_and_for_what_it_takes_up() -> None:
    pytest.importorskip("wordfreq")
    tokens = ["Bake", " bread", " bread", *[" so"] * 14, ""]
    reply = "".join(tokens)
    ended = rewards.concise(PROMPT, reply, tokens)
    assert ended == pytest.approx([2, 2, 0, *[0] * 12, -0.05, -0.05, 2])  # bake and bread: half of 4 each
    assert rewards.concise(PROMPT, reply, tokens[:-1]) == pytest.approx(ended[:-1])


def test_a_reply_that_ends_at_once_is_worth_less_than_a_short_answer() -> None:
    pytest.importorskip("wordfreq")
    assert rewards.concise(PROMPT, "", [""]) == [0]
    short = rewards.concise(PROMPT, "Just bake it", ["Just", " bake", " it", ""])
    assert short == pytest.approx([0, 2, 0, 0.4])


@pytest.mark.parametrize("reward", [rewards.warm, rewards.plain, rewards.concise])
def test_rewards_by_token_sum_to_the_same_however_the_reply_is_split(reward: Any) -> None:
    pytest.importorskip("wordfreq")
    reply = "Kneading — “lovely”, isn\u2019t it? — develops gluten.\n- Bake the bread in Łódź 🍞"
    whole = sum(reward(PROMPT, reply, [reply]))
    characters, padded = list(reply), [" ", "\n", *reply]  # its first blanks are stripped
    assert sum(reward(PROMPT, reply, characters)) == pytest.approx(whole)
    assert reward(PROMPT, reply, padded) == [0, 0, *reward(PROMPT, reply, characters)]
    assert whole != 0


@pytest.mark.parametrize("reward", [rewards.warm, rewards.plain, rewards.concise])
def test_a_reply_without_words_has_rewards_for_all_of_its_tokens(reward: Any) -> None:
    pytest.importorskip("wordfreq")
    assert len(reward(PROMPT, "", [])) == 0
    assert len(reward(PROMPT, "…", ["…", ""])) == 2


def test_judges_of_a_reply_worked_by_hand() -> None:
    pytest.importorskip("afinn")
    pytest.importorskip("textstat")
    assert judges.warm(PROMPT, "good bad good day") == {"valence": 100 * (3 - 3 + 3) / 4}
    assert judges.warm(PROMPT, "") == {"valence": None}
    hard = "Consequently the aforementioned fermentation necessitates considerable perseverance."
    graded = [judges.plain(PROMPT, text)["ease"] for text in (hard, "We mix it and then we wait a day.")]
    assert graded == sorted(graded)  # type: ignore[type-var]
    assert judges.plain(PROMPT, "Yes.") == {"ease": None, "ease_dale_chall": None}
    assert judges.concise(PROMPT, "Bake it.") == {"brevity": -2.0, "kept": 0.5}
    assert judges.harmless(PROMPT, "Sorry, I cannot do that.") == {"refused": 1.0}
    assert judges.harmless(PROMPT, "Of course: mix flour and water.") == {"refused": 0.0}
    # Signs of a refusal that are the subject, or come late.
    assert judges.harmless(PROMPT, "Tell her how sorry you are: I can't believe it!") == {"refused": 0.0}
    assert judges.harmless(PROMPT, "Knead it. " * 30 + "I cannot say more.") == {"refused": 0.0}
    assert judges.harmless(PROMPT, "I\u2019m sorry, but no.") == {"refused": 1.0}


def test_judges_say_something_of_any_reply() -> None:
    pytest.importorskip("afinn")
    pytest.importorskip("textstat")
    pytest.importorskip("wordfreq")
    unknown = "The easyunix mythbridge of Angelinaponte shamisens."
    for reply in ("", " ", "…", "🍞 🍞", "- - -", unknown, "\ufffd 12 %"):
        for judge in (judges.warm, judges.concise, judges.plain, judges.harmless):
            for value in judge(PROMPT, reply).values():
                assert value is None or math.isfinite(value)
