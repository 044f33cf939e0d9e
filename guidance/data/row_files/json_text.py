"""JSON of rows: a line each, a list, or an object of splits, told by what stands there, not by the suffix."""

from __future__ import annotations

import io
import itertools
import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from trimtab.guidance.errors import DataError

_SPLITS = ("train", "test", "validation", "data", "rows", "examples", "instances")
_OF_A_ROW = ("conversations", "messages", "conversation", "chosen", "rejected", "prompt", "completion")


@dataclass(frozen=True, slots=True)
class BadRow:
    """What is wrong with a piece of a file that is no row."""

    problem: str


def json_rows(file: io.TextIOBase, split: str) -> Iterator[tuple[str, object]]:
    """(where, row) pairs of lines, or of one document.

    split: which key of an object of splits; needed where it has several.

    Raises DataError where nothing in it is a row.
    """
    blank, first = 0, file.readline()
    while first and not first.strip():
        blank, first = blank + 1, file.readline()
    begun, _ = _loaded(first)
    if isinstance(begun, dict) and not split and not _split_names(begun) and not _columns(begun):
        yield from _lines(itertools.chain([first], file), blank)
    elif first:
        yield from _document(first + file.read(), split, blank)


def _document(text: str, split: str, blank: int) -> Iterator[tuple[str, object]]:
    whole, problem = _loaded(text)
    if not problem:
        for number, row in enumerate(_entries(whole, split)):
            yield f"row {number}", row
        return
    lines = text.splitlines(keepends=True)
    if not any(isinstance(_loaded(line)[0], dict | list | str) for line in lines if line.strip()):
        raise DataError(f"cannot be read, neither as a whole nor line by line ({problem})")
    yield from _lines(lines, blank)


def _lines(lines: Iterable[str], blank: int) -> Iterator[tuple[str, object]]:
    for number, line in enumerate(lines, start=blank + 1):
        if line.strip():
            row, problem = _loaded(line)
            yield f"line {number}", BadRow(f"is not JSON ({problem})") if problem else row


def _entries(whole: object, split: str) -> list[Any]:
    if isinstance(whole, Mapping):
        return _of_object(whole, split)
    if split:
        raise DataError(f"has no splits, and {split} is asked for")
    if not isinstance(whole, list):
        raise DataError("cannot be read (it must hold a list of rows, or a row on each line)")
    return whole


def _of_object(whole: Mapping[str, Any], split: str) -> list[Any]:
    names = _split_names(whole)
    if split and split not in names:
        raise DataError(f"has no split {split}, there are {', '.join(names) or 'none'}")
    if len(names) > 1 and not split:
        told = ", ".join(names)
        raise DataError(
            f"holds the splits {told}: name one with a colon after the file's name, as :{names[0]}"
        )
    if names:
        rows: list[Any] = whole[split or names[0]]
        return rows
    return _columns(whole) or [dict(whole)]


def _split_names(whole: Mapping[str, Any]) -> list[str]:
    """Keys of lists of rows. Turns and judged replies are lists of objects too, but those of one row."""
    lists = [name for name, value in whole.items() if _is_of_objects(value)]
    is_row = len(lists) < len(whole) or any(name in whole for name in _OF_A_ROW)
    return [name for name in lists if name in _SPLITS] if is_row else lists


def _is_of_objects(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(entry, dict) for entry in value)


def _columns(whole: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Rows of an object of columns, lists or, as pandas writes, objects by number; [] where it is none."""
    columns = list(whole.values())
    if columns and all(isinstance(column, dict) and column for column in columns):
        numbers = list(columns[0])
        if all(number.isdigit() for number in numbers) and all(list(column) == numbers for column in columns):
            return [{name: whole[name][number] for name in whole} for number in numbers]
    are_lists = all(isinstance(column, list) and not _is_of_objects(column) for column in columns)
    if not columns or not are_lists or len({len(column) for column in columns}) > 1:
        return []
    return [dict(zip(whole, row, strict=True)) for row in zip(*columns, strict=True)]


def _loaded(text: str) -> tuple[object, str]:
    """What the text holds, and what keeps it from being JSON."""
    try:
        return json.loads(text), ""
    except (ValueError, RecursionError) as error:
        return None, str(error) or type(error).__name__
