"""Scores from a Python function that the user names as `module:function`."""

from __future__ import annotations

import importlib
import inspect
import math
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from trimtab.guidance.data.rollouts import RolloutRow, plain_prompt
from trimtab.guidance.data.rows import ReadColumns
from trimtab.guidance.errors import UserError, first_line
from trimtab.server.scoring.scorer import Score

TokenTexts = Callable[[RolloutRow], list[str]]
UNITS = "the function's own"
BATCH_ARGUMENTS = ("prompts", "completions", "completion_ids")
_SWAPPED = (["reply", "prompt"], ["completion", "prompt"], ["response", "prompt"])
_TRAINERS_OWN = ("trainer_state", "log_extra", "log_metric", "environments")


def load_function(name: str, flag: str = "--judge") -> Callable[..., Any]:
    """The function behind `module:function`, found on the Python path or in the current folder.

    Raises UserError when there is none.
    """
    module_name, _, function_name = name.partition(":")
    if "" not in sys.path:
        sys.path.append("")
    try:
        with in_its_place():
            module = importlib.import_module(module_name)
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # the user's code may raise anything, also SystemExit
        what = f"{type(error).__name__}: {first_line(error)}"
        raise UserError(
            f"{flag} {name} cannot be had ({what}); name one as module:function, the module as `import` does"
        ) from error
    function = getattr(module, function_name, None)
    if function is None:
        where = getattr(module, "__file__", None) or "built in"
        raise UserError(
            f"{flag} {name} cannot be had: module {module_name} ({where}) has no {function_name or 'name'}; "
            "name one as module:function"
        )
    if not callable(function):
        raise UserError(f"{flag} {name} is no function but {type(function).__name__}")
    return function


@contextmanager
def in_its_place() -> Iterator[None]:
    """Whatever the user's code makes the current folder: paths of ours are relative to this one."""
    folder = Path.cwd()
    try:
        yield
    finally:
        os.chdir(folder)


@dataclass(frozen=True, slots=True)
class Calling:
    """How a function is called: for each reply with (prompt, reply) or (prompt, reply, tokens), or for a
    batch with keywords (prompts, completions, completion_ids), as far as it takes them, and `columns`."""

    style: Literal["reply", "tokens", "batch"]
    arguments: tuple[str, ...] = ()
    columns: ReadColumns = field(default_factory=ReadColumns)


def calling_of(function: Callable[..., Any]) -> Calling:
    """Read from the signature: a function that takes `completions` is called for batches.

    Raises UserError for a function that can be called in no such way, or is asynchronous.
    """
    name = _name(function)
    if any(map(inspect.iscoroutinefunction, (function, getattr(function, "__call__", None)))):  # noqa: B004
        raise UserError(
            f"{name} is asynchronous, and rewards are asked for one after the other: give `def {name}`"
        )
    try:
        signature = inspect.signature(function)
    except (TypeError, ValueError):
        return Calling("reply")  # some built-in functions do not tell: called with two
    kinds = {parameter.kind for parameter in signature.parameters.values()}
    if "completions" in signature.parameters or kinds == {inspect.Parameter.VAR_KEYWORD}:
        return _batch_calling(name, signature)
    for style, arguments in (("tokens", ("prompt", "reply", "tokens")), ("reply", ("prompt", "reply"))):
        try:
            signature.bind(*arguments)
        except TypeError:
            continue
        if [*signature.parameters][:2] in _SWAPPED:
            raise UserError(f"{name}{signature} is called with (prompt, reply), in this order: swap its two")
        return Calling(style)  # type: ignore[arg-type]
    raise UserError(
        f"{name}{signature} must take (prompt, reply), (prompt, reply, tokens), or batches as "
        "(prompts, completions, **columns)"
    )


def _batch_calling(name: str, signature: inspect.Signature) -> Calling:
    parameters = list(signature.parameters.values())
    takes_all = any(p.kind is p.VAR_KEYWORD for p in parameters)
    named = [p for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)]
    if any(p.kind is p.POSITIONAL_ONLY for p in parameters):
        raise UserError(f"{name}{signature} is called with keywords: take away the `/`")
    others = [p for p in named if p.name not in BATCH_ARGUMENTS]
    for parameter in others:
        if parameter.name in _TRAINERS_OWN and parameter.default is parameter.empty:
            raise UserError(
                f"{name}{signature} needs {parameter.name}, which only TRL's trainer has: give it a default"
            )
    columns = [p for p in others if p.name not in _TRAINERS_OWN]
    taken = BATCH_ARGUMENTS if takes_all else tuple(p.name for p in named if p.name in BATCH_ARGUMENTS)
    return Calling(
        "batch",
        taken,
        ReadColumns(
            name,
            needed=tuple(p.name for p in columns if p.default is p.empty),
            optional=tuple(p.name for p in columns if p.default is not p.empty),
            takes_all=takes_all,
        ),
    )


def _name(function: Callable[..., Any]) -> str:
    return str(getattr(function, "__name__", type(function).__name__))


class FunctionScorer:
    """f(prompt, reply) or f(prompt, reply, tokens) -> a number, or one number per drawn token.

    The prompt is a string or a list of message dicts; tokens are the texts of the drawn tokens, of which
    an end token is "". NaN, infinity, a wrong number of numbers and exceptions are problems of the reply.
    """

    units = UNITS
    rows_at_once = 64

    def __init__(self, function: Callable[..., Any], token_texts: TokenTexts | None = None) -> None:
        """token_texts: needed by a function that takes tokens."""
        self.function = function
        self.token_texts = token_texts
        self.takes_tokens = calling_of(function).style == "tokens"
        self._is_by_token: bool | None = None  # of the first reply that it scored

    def score(self, rows: Sequence[RolloutRow]) -> list[Score]:
        return [self._score(row) for row in rows]

    def _score(self, row: RolloutRow) -> Score:
        arguments: list[Any] = [plain_prompt(row.prompt), row.completion]
        if self.takes_tokens:
            assert self.token_texts is not None
            arguments.append(self.token_texts(row))
        try:
            with in_its_place():
                result = self.function(*arguments)
        except (Exception, SystemExit) as error:  # the user's code may raise anything: this reply's problem
            return Score.none(f"the function raised {type(error).__name__}: {error}")
        score = check_result(result, len(row.token_ids))
        if score.problem:
            return score
        is_by_token = score.token_rewards is not None
        if self._is_by_token in (None, is_by_token):
            self._is_by_token = is_by_token
            return score
        return Score.none("the function returned one number for some replies, one per token for others")


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
    except OverflowError:
        return math.inf
    except (TypeError, ValueError):
        return None


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
        arguments = self._arguments(rows)
        try:
            with in_its_place():
                results = self._function(**arguments)
        except (Exception, SystemExit) as error:  # the user's code may raise anything
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
