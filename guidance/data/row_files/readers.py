"""Files of rows by their suffix, compressed or not: JSON, whether a line each or whole, tables, Parquet."""

from __future__ import annotations

import bz2
import csv
import gzip
import io
import lzma
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import pyarrow as pa
import pyarrow.parquet as pq

from trimtab.guidance.data.row_files.cells import cell
from trimtab.guidance.data.row_files.json_text import BadRow, json_rows
from trimtab.guidance.errors import DataError

Raw = tuple[str, object]
_BATCH_ROWS = 512
_BROKEN = (OSError, EOFError, ValueError, csv.Error, lzma.LZMAError, zlib.error, pa.ArrowException)


def _zstandard(path: Path) -> IO[bytes]:
    return pa.CompressedInputStream(pa.OSFile(str(path)), "zstd")


_OPENERS: dict[str, Callable[[Path], Any]] = {
    ".gz": gzip.open,
    ".xz": lzma.open,
    ".bz2": bz2.open,
    ".zst": _zstandard,
}


@dataclass(frozen=True, slots=True)
class Reader:
    """read: rows of an open file, given which split of it is asked for. newline: as open() takes it."""

    read: Callable[[Any, str], Iterator[Raw]]
    is_text: bool = True
    newline: str | None = None


def _parquet(file: Any, split: str) -> Iterator[Raw]:
    """Batch by batch: only that many rows are Python objects that nobody has parsed yet."""
    number = 0
    for batch in pq.ParquetFile(file).iter_batches(_BATCH_ROWS):
        for row in batch.to_pylist():
            yield f"row {number}", row
            number += 1


def _table(delimiter: str, file: Any, split: str) -> Iterator[Raw]:
    """A table with its columns' names in the first line; what is no text is told from its column and look."""
    csv.field_size_limit(2**31 - 1)
    rows = csv.reader(file, delimiter=delimiter, strict=True)
    names = [name.strip() for name in next(rows, [])]
    while True:
        line = rows.line_num + 1
        row = next(rows, None)
        if row is None:
            return
        if len(row) == len(names):
            yield f"line {line}", {name: cell(name, text) for name, text in zip(names, row, strict=True)}
        elif row:
            yield f"line {line}", BadRow(f"has {len(row)} cells for {len(names)} columns")


def _comma(file: Any, split: str) -> Iterator[Raw]:
    return _table(",", file, split)


def _tab(file: Any, split: str) -> Iterator[Raw]:
    return _table("\t", file, split)


READERS: dict[str, Reader] = {
    ".jsonl": Reader(json_rows),
    ".json": Reader(json_rows),
    ".ndjson": Reader(json_rows),
    ".csv": Reader(_comma, newline=""),
    ".tsv": Reader(_tab, newline=""),
    ".parquet": Reader(_parquet, is_text=False),
}
"""How a file is read, by its suffix without that of its compression."""


def kind_of_file(path: Path) -> str | None:
    """Its suffix without that of its compression; None where it is none of READERS."""
    suffixes = [suffix.lower() for suffix in path.suffixes]
    if suffixes and suffixes[-1] in _OPENERS:
        suffixes.pop()
    return suffixes[-1] if suffixes and suffixes[-1] in READERS else None


def is_readable(path: Path) -> bool:
    """Whether its name is that of a file of rows."""
    return kind_of_file(path) is not None


def read_file(path: Path, split: str) -> Iterator[Raw]:
    """(where, row) pairs. split: which key of a JSON object of splits. Raises DataError with one line."""
    kind = kind_of_file(path)
    assert kind is not None
    reader = READERS[kind]
    if split and reader.read is not json_rows:
        raise DataError(f"{path}: has no splits, and {split} is asked for")
    try:
        with _OPENERS.get(path.suffix.lower(), _plain)(path) as raw:
            file = raw
            if reader.is_text:  # utf-8-sig: a byte order mark is no part of the first row
                file = io.TextIOWrapper(raw, encoding="utf-8-sig", newline=reader.newline)
            yield from reader.read(file, split)
    except DataError as error:
        raise DataError(f"{path}: {error}") from error
    except _BROKEN as error:
        told = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise DataError(f"{path}: cannot be read ({told})") from error


def _plain(path: Path) -> IO[bytes]:
    return path.open("rb")
