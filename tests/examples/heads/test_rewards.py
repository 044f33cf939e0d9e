from __future__ import annotations

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


def test_a_concise_reply_pays_for_words_and_is_paid_for_its_end_and_for_what_it_takes_up() -> None:
    pytest.importorskip("wordfreq")
    tokens = ["Bake", " bread", " bread", ""]
    ended = rewards.concise(PROMPT, "Bake bread bread", tokens)
    assert ended == pytest.approx([1 - 0.05, 1 - 0.05, -0.05, 2])  # bake and bread: half of 2 each
    assert rewards.concise(PROMPT, "Bake bread bread", tokens[:-1]) == pytest.approx(ended[:-1])


@pytest.mark.parametrize("reward", [rewards.warm, rewards.plain, rewards.concise])
def test_a_reply_without_words_has_rewards_for_all_of_its_tokens(reward: object) -> None:
    pytest.importorskip("wordfreq")
    assert len(reward(PROMPT, "", [])) == 0  # type: ignore[operator]
    assert len(reward(PROMPT, "…", ["…", ""])) == 2  # type: ignore[operator]


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
