"""Training rows from scored replies."""

from __future__ import annotations

from trimtab.guidance.data.rollouts import RolloutRow
from trimtab.guidance.data.training_rows import preferences, rankings, unpaired


def row(prompt_id: int, text: str, reward: float | None, is_cut: bool = False) -> RolloutRow:
    ids = tuple(ord(c) for c in text)
    return RolloutRow(f"p{prompt_id}", text, ids, is_cut, prompt_id, 0, 0, 0.0, 0.0, reward)


ROWS = [
    row(0, "a", 1.0),
    row(0, "b", 3.0, is_cut=True),
    row(0, "c", None),
    row(0, "d", 2.0),
    row(1, "e", 5.0),
    row(1, "f", 5.0),
    row(2, "g", 4.0),
]


def test_the_best_is_preferred_to_the_worst_by_their_difference():
    (made,) = preferences(ROWS, "best-worst")
    assert made == {
        "prompt": "p0",
        "chosen": "b",
        "rejected": "a",
        "margin": 2.0,
        "chosen_token_ids": [98],
        "rejected_token_ids": [97],
        "chosen_is_cut": True,
        "rejected_is_cut": False,
    }


def test_all_pairs_are_those_whose_rewards_differ_by_the_margin():
    pairs = [(made["chosen"], made["rejected"]) for made in preferences(ROWS, "all")]
    assert pairs == [("b", "d"), ("b", "a"), ("d", "a")]
    assert [made["margin"] for made in preferences(ROWS, "all", min_margin=1.5)] == [2.0]


def test_equal_texts_make_no_pair_though_their_rewards_differ():
    assert not preferences([row(0, "a", 1.0), row(0, "a", 2.0)], "all")


def test_replies_to_one_prompt_are_never_compared_with_another_s():
    assert {made["prompt"] for made in preferences(ROWS, "all")} == {"p0"}


def test_ranks_begin_with_the_best_and_equal_rewards_share_one():
    rows = [row(0, "a", 1.0), row(0, "b", 3.0), row(0, "c", 1.0), row(0, "d", 2.0)]
    (made,) = rankings(rows)
    assert made["responses"] == ["a", "b", "c", "d"]
    assert made["ranks"] == [3.0, 1.0, 3.0, 2.0]
    assert made["token_ids"] == [[97], [98], [99], [100]]


def test_a_prompt_without_a_difference_has_no_ranking():
    assert [made["prompt"] for made in rankings(ROWS)] == ["p0"]


def test_every_scored_reply_gets_a_label_and_the_threshold_itself_is_good():
    made = {entry["completion"]: entry["label"] for entry in unpaired(ROWS, threshold=2.0)}
    assert made == {"a": False, "b": True, "d": True, "e": True, "f": True, "g": True}
