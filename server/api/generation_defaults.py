"""Sampling defaults that a model comes with, read from its generation_config.json. No torch here."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from trimtab.guidance.json_file import read_json, shown
from trimtab.server.engine.request import InvalidRequestError, SamplingParams

FILE = "generation_config.json"


class GenerationConfigError(ValueError):
    """A generation_config.json that cannot be read or honoured. One line: the file, and what to do."""


@dataclass(frozen=True, slots=True)
class SamplingDefaults:
    """What a request that leaves a field out is sampled with; None is SamplingParams' own default.

    max_new_tokens: of chats, whose replies are else limited by the context alone. source: the file.
    """

    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    min_p: float | None = None
    repetition_penalty: float | None = None
    max_new_tokens: int | None = None
    source: str = ""

    @property
    def sampling(self) -> dict[str, Any]:
        """Fields of SamplingParams that have a default here."""
        others = ("max_new_tokens", "source")
        return {name: v for name, v in asdict(self).items() if v is not None and name not in others}

    def __str__(self) -> str:
        limit = {} if self.max_new_tokens is None else {"max_tokens of chats": self.max_new_tokens}
        return ", ".join(f"{name} {value:g}" for name, value in {**self.sampling, **limit}.items())


def read_defaults(path: Path) -> SamplingDefaults:
    """The defaults in a file; those that are null or left out stay as they are.

    Raises GenerationConfigError for a file that is none, or a value out of range.
    """
    try:
        stated = read_json(path)
    except (OSError, ValueError) as error:
        raise _error(path, f"cannot be read ({error})") from error
    if not isinstance(stated, dict):
        raise _error(path, "is no JSON object")
    values = {name: _number(path, name, stated) for name in _FIELDS if stated.get(name) is not None}
    if values.get("top_k") == -1:  # how others write that all tokens are kept
        values["top_k"] = 0
    defaults = SamplingDefaults(**values, source=path.name)
    _check(path, defaults)
    return defaults


_FIELDS: Mapping[str, type] = {
    "temperature": float,
    "top_p": float,
    "top_k": int,
    "min_p": float,
    "repetition_penalty": float,
    "max_new_tokens": int,
}


def _number(path: Path, name: str, stated: Mapping[str, Any]) -> Any:
    value, kind = stated[name], _FIELDS[name]
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    if not is_number or (kind is int and value % 1 != 0):
        raise _error(path, f"{name} must be a{' whole' if kind is int else ''} number, got {shown(value)}")
    try:
        return kind(value)
    except OverflowError as error:
        raise _error(path, f"{name} is too large") from error


def _check(path: Path, defaults: SamplingDefaults) -> None:
    limit = 1 if defaults.max_new_tokens is None else defaults.max_new_tokens
    try:
        SamplingParams(max_tokens=limit, **defaults.sampling)
    except InvalidRequestError as error:
        raise _error(path, str(error)) from error


def _error(path: Path, problem: str) -> GenerationConfigError:
    return GenerationConfigError(f"{path}: {problem}; mend the file, or start with --generation-config none")
