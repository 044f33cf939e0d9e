"""Scores from a judge model that rates each reply by a rubric."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from trimtab.guidance.data.rollouts import RolloutRow
from trimtab.server.judging.answers import AnswerFile
from trimtab.server.judging.client import FailureError, Judge
from trimtab.server.judging.config import JudgeConfig
from trimtab.server.judging.questions import RUBRIC, rating_question, read_rating
from trimtab.server.scoring.scorer import Score


class JudgeScorer:
    """The judge's whole number from 1 to 10. Replies that it does not rate are problems of their scores."""

    units = "a judge's rating, 1 to 10"
    rows_at_once = sys.maxsize  # it keeps each answer itself

    def __init__(self, config: JudgeConfig, file: AnswerFile, rubric: str = RUBRIC) -> None:
        """Raises UserError for a URL or an API key that cannot be."""
        self._judge = Judge(config, file)
        self._rubric = rubric

    def score(self, rows: Sequence[RolloutRow]) -> list[Score]:
        """Raises UserError when the judge leaves too much unanswered."""
        questions = [rating_question(self._rubric, row.prompt, row.completion) for row in rows]
        ratings = self._judge.ask(questions, read_rating, progress="ratings").results
        return [
            Score.none(f"the judge: {rating}") if isinstance(rating, FailureError) else Score(rating)
            for rating in ratings
        ]
