"""Data rows as TRL spells them, read from JSONL, JSON, Parquet, or a folder that `datasets` saved."""

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
from trimtab.guidance.message import Prompt
from trimtab.guidance.rows import ROW_KINDS, Preference, Ranking, Rollout, Unpaired

logger = logging.getLogger(__name__)
OnBadRows = Literal["refuse", "skip"]
ExtraColumns = Literal["refuse", "ignore"]
Row = TypeVar("Row")
_OPENERS: dict[str, Callable[..., Any]] = {".gz": gzip.open, ".xz": lzma.open}


@dataclass(frozen=True, slots=True)
class LoadedRows(Generic[Row]):
    """num_bad: rows that were skipped; first_bad says where the first one is and what is wrong with it."""

    rows: tuple[Row, ...]
    num_bad: int = 0
    first_bad: str = ""


def load_preferences(
    path: Path, on_bad: OnBadRows = "refuse", extra: ExtraColumns = "refuse"
) -> LoadedRows[Preference]:
    """Rows {prompt?, chosen, rejected}, strings or lists of messages, and what rows.ROW_KINDS lists.

    Without a prompt, what chosen and rejected begin with alike is the prompt.

    Raises:
        DataError: the file cannot be read, holds no good row, or (on_bad="refuse") holds a bad one, or
            (extra="refuse") has a column that is not read.
    """
    return load_rows("preferences", path, on_bad, extra)


def load_rankings(
    path: Path, on_bad: OnBadRows = "refuse", extra: ExtraColumns = "refuse"
) -> LoadedRows[Ranking]:
    """Rows {prompt, responses, ranks}. Raises as load_preferences."""
    return load_rows("rankings", path, on_bad, extra)


def load_unpaired(
    path: Path, on_bad: OnBadRows = "refuse", extra: ExtraColumns = "refuse"
) -> LoadedRows[Unpaired]:
    """Rows {prompt, completion, label}. Raises as load_preferences."""
    return load_rows("unpaired", path, on_bad, extra)


def load_rollouts(
    path: Path, on_bad: OnBadRows = "refuse", extra: ExtraColumns = "refuse"
) -> LoadedRows[Rollout]:
    """Rows {prompt, completion} with tokens and rewards where they are known. Raises as load_preferences."""
    return load_rows("rollouts", path, on_bad, extra)


def load_prompts(
    path: Path, on_bad: OnBadRows = "refuse", extra: ExtraColumns = "refuse"
) -> LoadedRows[Prompt]:
    """Rows {prompt}. Raises as load_preferences."""
    return load_rows("prompts", path, on_bad, extra)


def load_rows(kind: str, path: Path, on_bad: OnBadRows, extra: ExtraColumns) -> LoadedRows[Any]:
    """Rows of the kind that rows.ROW_KINDS names. Raises as load_preferences."""
    parse = ROW_KINDS[kind].parse
    known = {*ROW_KINDS[kind].columns, *ROW_KINDS[kind].optional}
    rows, unread, bad = [], dict[str, None](), list[str]()
    for where, row in raw_rows(path):
        try:
            if not isinstance(row, dict):
                raise DataError(row if isinstance(row, str) else "is not a JSON object")
            unread.update(dict.fromkeys(name for name in row if name not in known and row[name] is not None))
            rows.append(parse(row))
        except DataError as error:
            bad.append(f"{where}: {error}")
    if bad and on_bad == "refuse":
        raise DataError(f"{path}: {len(bad)} bad rows, first {bad[0]}: mend them or skip bad rows")
    if not rows:
        detail = f"all {len(bad)} are bad, first {bad[0]}" if bad else "it is empty"
        raise DataError(f"{path}: no usable row, {detail}")
    if unread and extra == "refuse":
        raise DataError(
            f"{path}: {kind} have no column {', '.join(sorted(unread))}, known are "
            f"{', '.join(sorted(known))}: remove it, or ignore extra columns"
        )
    if bad:
        logger.warning("%s: skipped %d bad rows, first %s", path, len(bad), bad[0])
    return LoadedRows(tuple(rows), len(bad), bad[0] if bad else "")


def raw_rows(path: Path) -> Iterator[tuple[str, object]]:
    """(where, row) pairs; a line that is not JSON comes as a string that says so. Raises DataError."""
    suffixes = [suffix for suffix in path.suffixes if suffix not in _OPENERS][-1:]
    if not path.exists():
        raise DataError(f"{path}: no such file or folder")
    if path.is_dir():
        yield from _from_table(path, lambda: datasets.load_from_disk(str(path)))
    elif path.suffix == ".parquet":
        yield from _from_table(path, lambda: datasets.Dataset.from_parquet(str(path), keep_in_memory=True))
    elif suffixes == [".jsonl"]:
        yield from _readable(path, _from_lines)
    elif suffixes == [".json"]:
        yield from _readable(path, _from_list)
    else:
        raise DataError(f"{path}: must be .jsonl or .json (also .gz, .xz), .parquet, or a datasets folder")


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


def _readable(
    path: Path, read: Callable[[Any], Iterator[tuple[str, object]]]
) -> Iterator[tuple[str, object]]:
    try:
        with _OPENERS.get(path.suffix, open)(path, "rt", encoding="utf-8") as file:
            yield from read(file)
    except (OSError, EOFError, lzma.LZMAError, ValueError) as error:
        if isinstance(error, DataError):
            raise
        raise DataError(f"{path}: cannot be read ({error})") from error


def _from_lines(lines: Any) -> Iterator[tuple[str, object]]:
    for number, line in enumerate(lines, start=1):
        if line.strip():
            try:
                yield f"line {number}", json.loads(line)
            except ValueError as error:
                yield f"line {number}", f"is not JSON ({error})"


def _from_list(file: Any) -> Iterator[tuple[str, object]]:
    rows = json.load(file)
    if not isinstance(rows, list):
        raise ValueError("it must hold a list of rows")
    for number, row in enumerate(rows):
        yield f"row {number}", row
