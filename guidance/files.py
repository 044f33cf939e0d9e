"""Parquet files that are whole or not there: written under a name of their own, then moved into place."""

from __future__ import annotations

import os
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from trimtab.guidance.errors import DataError


def write_parquet(path: Path, table: pa.Table) -> None:
    """Writes the table as `path`, replacing an older file; a failure leaves that as it was."""
    path.parent.mkdir(parents=True, exist_ok=True)
    new = path.with_name(f".{path.name}.{os.getpid()}.new")
    try:
        pq.write_table(table, new, compression="zstd")
        os.replace(new, path)
    finally:
        new.unlink(missing_ok=True)


def read_parquet(path: Path) -> pa.Table:
    """Raises DataError, one line, where there is no such file or it is no Parquet."""
    if not path.is_file():
        raise DataError(f"{path}: no such file")
    try:
        return pq.read_table(path)
    except (pa.ArrowException, OSError) as error:
        raise DataError(f"{path}: cannot be read as Parquet ({str(error).splitlines()[0]})") from error
