"""Windows of a reply: credits its score to the tokens by which the score of what is written changed."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

from trimtab.guidance.data.rollouts import RolloutRow
from trimtab.server.scoring.scorer import Score, Scorer


class WindowScorer:
    """A scorer of whole replies asked also about the reply's beginnings of `size`, 2·size, … tokens.

    Each window's last token is given by how much its beginning scores more than the one before; the first
    window has its beginning's own score, so the tokens' rewards sum to the reply's score. This assumes that a
    beginning can be scored as if it were a reply that was cut there. Tokens that the scorer rewards itself
    keep what it gave them.

    texts: a row's tokens as texts that together are its completion.
    """

    def __init__(self, scorer: Scorer, size: int, texts: Callable[[RolloutRow], list[str]]) -> None:
        assert size > 0
        self._scorer, self._size, self._texts = scorer, size, texts
        self.units, self.rows_at_once = scorer.units, scorer.rows_at_once

    def score(self, rows: Sequence[RolloutRow]) -> list[Score]:
        """Raises what the scorer raises."""
        whole = self._scorer.score(rows)
        asked = {i: self._beginnings(rows[i]) for i, score in enumerate(whole) if _is_of_reply(score)}
        found = iter(self._scorer.score([one for some in asked.values() for one in some]))
        for index, beginnings in asked.items():
            scores = [next(found) for _ in beginnings]
            whole[index] = _credited(whole[index], beginnings, scores, len(rows[index].token_ids))
        return whole

    def _beginnings(self, row: RolloutRow) -> list[RolloutRow]:
        """Shorter than the reply, each cut after a window."""
        ends = range(self._size, len(row.token_ids), self._size)
        texts = self._texts(row) if ends else []
        return [
            replace(row, completion="".join(texts[:end]), token_ids=row.token_ids[:end], is_cut=True)
            for end in ends
        ]


def _is_of_reply(score: Score) -> bool:
    return score.reward is not None and score.token_rewards is None


def _credited(
    whole: Score, beginnings: Sequence[RolloutRow], scores: Sequence[Score], num_tokens: int
) -> Score:
    assert whole.reward is not None
    rewards, before = [0.0] * num_tokens, 0.0
    for beginning, score in zip(beginnings, scores, strict=True):
        end = len(beginning.token_ids)
        if score.reward is None:
            problem = score.problem or "it was left without a reward"
            return Score.none(f"of its first {end} tokens: {problem} (a reply's beginning must be scorable)")
        rewards[end - 1] = score.reward - before
        before = score.reward
    rewards[-1] = whole.reward - before
    return Score.of_tokens(rewards)
