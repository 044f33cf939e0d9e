"""Parquet files that are whole or not there: written under a name of their own, then moved into place."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
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


def write_text(path: Path, text: str) -> None:
    """Writes `path`, replacing an older file; a failure leaves that as it was."""
    path.parent.mkdir(parents=True, exist_ok=True)
    new = path.with_name(f".{path.name}.{os.getpid()}.new")
    try:
        new.write_text(text, encoding="utf-8")
        os.replace(new, path)
    finally:
        new.unlink(missing_ok=True)


@contextmanager
def whole_folder(folder: Path) -> Iterator[Path]:
    """Within, a folder beside `folder` to write to; afterwards it is `folder`, in place of an older one.

    A failure leaves the older one as it was.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    new = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
    try:
        new.chmod(0o755)
        yield new
        old = Path(tempfile.mkdtemp(prefix=f".{folder.name}.old.", dir=folder.parent))
        if folder.exists():
            os.replace(folder, old)
        os.replace(new, folder)
        shutil.rmtree(old)
    finally:
        shutil.rmtree(new, ignore_errors=True)
