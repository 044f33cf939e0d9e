"""Scores of whole replies, credited by windows of their tokens."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import pytest

from trimtab.guidance.data.rollouts import RolloutRow
from trimtab.server.scoring.functions import FunctionScorer
from trimtab.server.scoring.scorer import Score
from trimtab.server.scoring.windows import WindowScorer


def row(text: str, *, is_cut: bool = True) -> RolloutRow:
    """A token for each character, and one of no text where the reply ended by itself."""
    ids = tuple(range(len(text) + (not is_cut)))
    return RolloutRow("p", text, ids, is_cut, prompt_id=0, sample=0, seed=0, kl=0.0, strength=0.0)


def texts(row: RolloutRow) -> list[str]:
    return [*row.completion, *[""] * (not row.is_cut)]


def scores(function: Callable[..., object], size: int, *rows: RolloutRow) -> list[Score]:
    return WindowScorer(FunctionScorer(function, texts), size, texts).score(rows)


def share_of_a(prompt: str, reply: str) -> float:
    return reply.count("a") / len(reply)


def test_each_window_is_given_by_how_much_it_raised_the_score():
    """aab|bba|a scores 2/3 after three tokens, 3/6 after six, 4/7 in all."""
    (score,) = scores(share_of_a, 3, row("aabbbaa"))
    assert score.token_rewards == pytest.approx([0, 0, 2 / 3, 0, 0, 3 / 6 - 2 / 3, 4 / 7 - 3 / 6])
    assert score.reward == pytest.approx(4 / 7)


@pytest.mark.parametrize("is_cut", [True, False])
@pytest.mark.parametrize("size", [1, 2, 5, 6, 7, 100])
def test_the_tokens_rewards_sum_to_the_replys_score(size: int, is_cut: bool):
    (score,) = scores(lambda p, r: len(r) + 0.1 * r.count("b"), size, row("abbaab", is_cut=is_cut))
    assert score.token_rewards is not None
    assert len(score.token_rewards) == 6 + (not is_cut)
    assert sum(score.token_rewards) == pytest.approx(6.3)


def test_replies_of_several_lengths_keep_their_own_windows():
    found = scores(lambda p, r: float(len(r)), 2, row("a"), row("aaa"), row("aaaa"))
    assert [score.token_rewards for score in found] == [(1,), (0, 2, 1), (0, 2, 0, 2)]


def test_a_beginning_is_scored_as_a_reply_that_was_cut():
    seen = list[tuple[str, bool, int]]()

    class Spy:
        units, rows_at_once = "", 4

        def score(self, rows: Sequence[RolloutRow]) -> list[Score]:
            seen.extend((row.completion, row.is_cut, len(row.token_ids)) for row in rows)
            return [Score(0.0)] * len(rows)

    WindowScorer(Spy(), 2, texts).score([row("abc", is_cut=False)])
    assert seen == [("abc", False, 4), ("ab", True, 2)]


def test_rewards_by_token_stay_as_they_are():
    (score,) = scores(lambda p, r, tokens: [1.0] * len(tokens), 2, row("abc"))
    assert score.token_rewards == (1, 1, 1)


def test_a_beginning_that_cannot_be_scored_is_named():
    (score,) = scores(lambda p, r: 1.0 if len(r) > 2 else float("nan"), 2, row("abc"))
    assert score.reward is None
    assert "first 2 tokens" in score.problem
