"""Scores from a Python function that is called for batches of replies, as TRL calls reward functions."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from trimtab.guidance.data.rollouts import RolloutRow, plain_prompt
from trimtab.server.commands.errors import UserError
from trimtab.server.scoring.functions import UNITS, Calling, check_result
from trimtab.server.scoring.scorer import Score


class BatchFunctionScorer:
    """f(prompts, completions, completion_ids, **columns) -> for each reply a number, numbers of its tokens,
    or None, which leaves it without a reward.

    A completion is a string where the prompt is one, else a list of one message. An exception is a problem of
    every reply of its batch.
    """

    units = UNITS
    rows_at_once = 64

    def __init__(self, function: Callable[..., Any], calling: Calling, name: str) -> None:
        """name: of the function, for messages."""
        assert calling.style == "batch"
        self._function, self._calling, self._name = function, calling, name

    def score(self, rows: Sequence[RolloutRow]) -> list[Score]:
        """Raises UserError where the function returns anything but a result for every reply."""
        self._calling.columns.check("the replies", {name for row in rows for name in row.columns})
        size = self.rows_at_once
        batches = (rows[start : start + size] for start in range(0, len(rows), size))
        return [score for batch in batches for score in self._batch(batch)]

    def _batch(self, rows: Sequence[RolloutRow]) -> list[Score]:
        batch = f"{self._name}, called for {len(rows)} replies from {_place(rows[0])} to {_place(rows[-1])},"
        try:
            results = self._function(**self._arguments(rows))
        except Exception as error:  # the user's code may raise anything
            return [Score.none(f"{batch} raised {type(error).__name__}: {error}")] * len(rows)
        if isinstance(results, str | bytes | dict) or not hasattr(results, "__len__"):
            kind = type(results).__name__
            raise UserError(f"{batch} returned {kind}, want a list of {len(rows)} numbers")
        if len(results) != len(rows):
            raise UserError(f"{batch} returned {len(results)} rewards for {len(rows)} replies")
        return [_one(result, row) for result, row in zip(results, rows, strict=True)]

    def _arguments(self, rows: Sequence[RolloutRow]) -> dict[str, Any]:
        given: dict[str, Any] = {
            "prompts": [plain_prompt(row.prompt) for row in rows],
            "completions": [plain_completion(row) for row in rows],
            "completion_ids": [list(row.token_ids) for row in rows],
        }
        columns = [self._calling.columns.of(row.columns) for row in rows]
        names = dict.fromkeys(name for row in columns for name in row)
        carried = {name: [row.get(name) for row in columns] for name in names}
        return {**carried, **{name: given[name] for name in self._calling.arguments}}


def plain_completion(row: RolloutRow) -> str | list[dict[str, str]]:
    """The reply as TRL has it: a string after a string, messages after messages."""
    if isinstance(row.prompt, str):
        return row.completion
    return [{"role": "assistant", "content": row.completion}]


def _place(row: RolloutRow) -> str:
    return f"prompt {row.prompt_id} sample {row.sample}"


def _one(result: object, row: RolloutRow) -> Score:
    return Score(None) if result is None else check_result(result, len(row.token_ids))
