"""Data rows as TRL spells them, read from JSONL, Parquet, or a folder that `datasets` saved."""

from __future__ import annotations

import gzip
import json
import logging
import lzma
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, Literal, TypeVar

import datasets

from trimtab.guidance.errors import DataError
from trimtab.guidance.message import Message, Prompt

logger = logging.getLogger(__name__)
OnBadRows = Literal["refuse", "skip"]
_ROLES = ("system", "user", "assistant")
_OPENERS: dict[str, Callable[..., Any]] = {".gz": gzip.open, ".xz": lzma.open}
Row = TypeVar("Row")


@dataclass(frozen=True, slots=True)
class Preference:
    """Two replies to one prompt, of which `chosen` is the better."""

    prompt: Prompt
    chosen: str
    rejected: str


@dataclass(frozen=True, slots=True)
class Rollout:
    """One reply to a prompt, sampled from the policy."""

    prompt: Prompt
    completion: str


@dataclass(frozen=True, slots=True)
class LoadedRows(Generic[Row]):
    """num_bad: rows that were skipped; first_bad says where the first one is and what is wrong with it."""

    rows: tuple[Row, ...]
    num_bad: int = 0
    first_bad: str = ""


def load_preferences(path: Path, on_bad: OnBadRows = "refuse") -> LoadedRows[Preference]:
    """Rows {prompt?, chosen, rejected}; strings or lists of messages. Other columns are not read.

    Without a prompt, what chosen and rejected begin with alike is the prompt.

    Raises:
        DataError: the file cannot be read, holds no good row, or (on_bad="refuse") holds a bad one.
    """
    return _load(path, parse_preference, on_bad)


def load_rollouts(path: Path, on_bad: OnBadRows = "refuse") -> LoadedRows[Rollout]:
    """Rows {prompt, completion}. Raises as load_preferences."""
    return _load(path, parse_rollout, on_bad)


def load_prompts(path: Path, on_bad: OnBadRows = "refuse") -> LoadedRows[Prompt]:
    """Rows {prompt}. Raises as load_preferences."""
    return _load(path, parse_prompt_row, on_bad)


def parse_preference(row: dict[str, Any]) -> Preference:
    """Raises DataError that names the field."""
    chosen, rejected = _field(row, "chosen"), _field(row, "rejected")
    if row.get("prompt") is not None:
        prompt = _prompt(row["prompt"])
        preference = Preference(prompt, _reply(chosen, "chosen"), _reply(rejected, "rejected"))
    elif isinstance(chosen, str) and isinstance(rejected, str):
        preference = _split_strings(chosen, rejected)
    else:
        preference = _split_messages(_messages(chosen, "chosen"), _messages(rejected, "rejected"))
    if preference.chosen == preference.rejected:
        raise DataError("chosen and rejected are the same")
    return preference


def parse_rollout(row: dict[str, Any]) -> Rollout:
    """Raises DataError that names the field."""
    return Rollout(_prompt(_field(row, "prompt")), _reply(_field(row, "completion"), "completion"))


def parse_prompt_row(row: dict[str, Any]) -> Prompt:
    """Raises DataError that names the field."""
    return _prompt(_field(row, "prompt"))


def _field(row: dict[str, Any], name: str) -> Any:
    if row.get(name) is None:
        raise DataError(f"{name} is missing")
    return row[name]


def _prompt(value: Any) -> Prompt:
    if isinstance(value, str):
        return value
    messages = _messages(value, "prompt")
    if messages[-1].role == "assistant":
        raise DataError("prompt ends with a message of the assistant: move it into the reply")
    return messages


def _messages(value: Any, name: str) -> tuple[Message, ...]:
    if not isinstance(value, list) or not value:
        raise DataError(f"{name} must be a string or a list of messages, got {str(value)[:40]!r}")
    messages = []
    for item in value:
        is_message = isinstance(item, dict) and isinstance(item.get("content"), str)
        if not is_message or item.get("role") not in _ROLES:
            raise DataError(f"{name} holds {str(item)[:60]!r}, want a role and content as a string")
        messages.append(Message(item["role"], item["content"]))
    return tuple(messages)


def _reply(value: Any, name: str) -> str:
    if not isinstance(value, str):
        messages = _messages(value, name)
        if len(messages) != 1 or messages[0].role != "assistant":
            raise DataError(f"{name} must be one message of the assistant when prompt is given")
        value = messages[0].content
    if not value:
        raise DataError(f"{name} is empty")
    return str(value)


def _split_strings(chosen: str, rejected: str) -> Preference:
    """The prompt is what both begin with, up to the start of a word."""
    shared = 0
    while shared < min(len(chosen), len(rejected)) and chosen[shared] == rejected[shared]:
        shared += 1
    while shared > 0 and not chosen[shared - 1].isspace():
        shared -= 1
    while shared > 0 and chosen[shared - 1].isspace():
        shared -= 1
    if shared == 0:
        raise DataError("prompt is missing, and chosen and rejected begin with nothing in common")
    prompt = chosen[:shared]
    return Preference(prompt, _reply(chosen[shared:], "chosen"), _reply(rejected[shared:], "rejected"))


def _split_messages(chosen: tuple[Message, ...], rejected: tuple[Message, ...]) -> Preference:
    if chosen[:-1] != rejected[:-1] or len(chosen) < 2:
        raise DataError("prompt is missing, and chosen and rejected differ in more than the last message")
    if chosen[-1].role != "assistant" or rejected[-1].role != "assistant":
        raise DataError("the last message of chosen and rejected must be the assistant's")
    replies = _reply(chosen[-1].content, "chosen"), _reply(rejected[-1].content, "rejected")
    return Preference(chosen[:-1], *replies)


def _load(path: Path, parse: Callable[[dict[str, Any]], Row], on_bad: OnBadRows) -> LoadedRows[Row]:
    rows, num_bad, first_bad = [], 0, ""
    for where, row in _raw_rows(path):
        try:
            if not isinstance(row, dict):
                raise DataError(row if isinstance(row, str) else "is not a JSON object")
            rows.append(parse(row))
        except DataError as error:
            num_bad += 1
            first_bad = first_bad or f"{where}: {error}"
    if num_bad and on_bad == "refuse":
        raise DataError(f"{path}: {num_bad} bad rows, first {first_bad}: mend them or skip bad rows")
    if not rows:
        detail = f"all {num_bad} are bad, first {first_bad}" if num_bad else "it is empty"
        raise DataError(f"{path}: no usable row, {detail}")
    if num_bad:
        logger.warning("%s: skipped %d bad rows, first %s", path, num_bad, first_bad)
    return LoadedRows(tuple(rows), num_bad, first_bad)


def _raw_rows(path: Path) -> Iterator[tuple[str, object]]:
    """(where, row) pairs; a line that is not JSON comes as a string that says so."""
    if not path.exists():
        raise DataError(f"{path}: no such file or folder")
    if path.is_dir():
        yield from _from_table(path, lambda: datasets.load_from_disk(str(path)))
    elif path.suffix == ".parquet":
        yield from _from_table(path, lambda: datasets.Dataset.from_parquet(str(path), keep_in_memory=True))
    elif ".jsonl" in path.suffixes[-2:]:
        yield from _from_lines(path)
    else:
        raise DataError(f"{path}: must be .jsonl (also .gz, .xz), .parquet, or a folder saved by datasets")


def _from_table(path: Path, load: Callable[[], Any]) -> Iterator[tuple[str, object]]:
    try:
        table = load()
    except Exception as error:
        first_line = (str(error).splitlines() or [type(error).__name__])[0]
        raise DataError(f"{path}: datasets cannot read it ({first_line})") from error
    if isinstance(table, datasets.DatasetDict):
        raise DataError(f"{path}: holds the splits {', '.join(table)}: name the folder of one of them")
    for number, row in enumerate(table):
        yield f"row {number}", row


def _from_lines(path: Path) -> Iterator[tuple[str, object]]:
    opener = _OPENERS.get(path.suffix, open)
    try:
        with opener(path, "rt", encoding="utf-8") as lines:
            for number, line in enumerate(lines, start=1):
                if line.strip():
                    try:
                        yield f"line {number}", json.loads(line)
                    except ValueError as error:
                        yield f"line {number}", f"is not JSON ({error})"
    except (OSError, EOFError, lzma.LZMAError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: cannot be read ({error})") from error
