"""Scores from a Python function that the user names as `module:function`."""

from __future__ import annotations

import importlib
import inspect
import math
import sys
from collections.abc import Callable, Sequence
from typing import Any

from trimtab.server.commands.errors import UserError
from trimtab.server.scoring.rollout import RolloutRow, plain_prompt
from trimtab.server.scoring.score import Score

TokenTexts = Callable[[RolloutRow], list[str]]


def load_function(name: str, flag: str = "--judge") -> Callable[..., Any]:
    """The function behind `module:function`, found on the Python path or in the current folder.

    Raises UserError when there is none.
    """
    module_name, _, function_name = name.partition(":")
    if "" not in sys.path:
        sys.path.append("")
    try:
        function = getattr(importlib.import_module(module_name), function_name)
    except (ImportError, AttributeError, ValueError, SyntaxError) as error:
        raise UserError(f"{flag} {name} cannot be had ({error}); name one as module:function") from error
    if not callable(function):
        raise UserError(f"{flag} {name} is no function but {type(function).__name__}")
    return function


def takes_tokens(function: Callable[..., Any]) -> bool:
    """Whether it is called with (prompt, reply, tokens) rather than (prompt, reply).

    Raises UserError for a function that can be called with neither.
    """
    try:
        signature = inspect.signature(function)
    except (TypeError, ValueError):
        return False  # some built-in functions do not tell: called with two
    for arguments in (("prompt", "reply", "tokens"), ("prompt", "reply")):
        try:
            signature.bind(*arguments)
        except TypeError:
            continue
        return len(arguments) == 3
    name = getattr(function, "__name__", function)
    raise UserError(f"{name}{signature} must take (prompt, reply) or (prompt, reply, tokens)")


class FunctionScorer:
    """f(prompt, reply) or f(prompt, reply, tokens) -> a number, or one number per drawn token.

    The prompt is a string or a list of message dicts; tokens are the texts of the drawn tokens, of which
    an end token is "". NaN, infinity, a wrong number of numbers and exceptions are problems of the reply.
    """

    units = "the function's own"

    def __init__(self, function: Callable[..., Any], token_texts: TokenTexts | None = None) -> None:
        """token_texts: needed by a function that takes tokens."""
        self.function = function
        self.token_texts = token_texts
        self.takes_tokens = takes_tokens(function)

    def score(self, rows: Sequence[RolloutRow]) -> list[Score]:
        return [self._score(row) for row in rows]

    def _score(self, row: RolloutRow) -> Score:
        arguments: list[Any] = [plain_prompt(row.prompt), row.completion]
        if self.takes_tokens:
            assert self.token_texts is not None
            arguments.append(self.token_texts(row))
        try:
            result = self.function(*arguments)
        except Exception as error:  # the user's code may raise anything; it becomes this reply's problem
            return Score.none(f"the function raised {type(error).__name__}: {error}")
        return check_result(result, len(row.token_ids))


def check_result(result: object, num_tokens: int) -> Score:
    """A score from what a function returned, or the problem with it."""
    number = _number(result)
    if number is not None:
        return Score(number) if math.isfinite(number) else Score.none(f"the reward is {number}")
    if isinstance(result, str | bytes | dict) or not hasattr(result, "__iter__"):
        kind = "None" if result is None else type(result).__name__
        return Score.none(f"the function returned {kind}, want a number or one per token")
    rewards = [_number(item) for item in result]
    if len(rewards) != num_tokens:
        return Score.none(f"{len(rewards)} token rewards for {num_tokens} tokens")
    numbers = [number for number in rewards if number is not None and math.isfinite(number)]
    if len(numbers) != num_tokens:
        bad = next(i for i, number in enumerate(rewards) if number is None or not math.isfinite(number))
        return Score.none(f"the reward of token {bad} is {rewards[bad]}")
    return Score.of_tokens(numbers)


def _number(value: object) -> float | None:
    """None for what is no single number; numpy's and torch's own scalars are numbers."""
    if isinstance(value, str | bytes) or getattr(value, "ndim", 0) != 0:
        return None
    try:
        return float(value)  # type: ignore[arg-type]
    except (TypeError, ValueError, OverflowError):
        return None
