"""Whole files and folders: writes them beside their place, then moves them into it."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from trimtab.guidance.errors import DataError, first_line

if TYPE_CHECKING:
    import pyarrow as pa

_READABLE = 0o666


@contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """Within, an empty file beside `path` to write; afterwards it is `path`, in place of an older one.

    A failure leaves the older one as it was, and nothing else. So does a kill, but for a hidden `.NAME.new`,
    which the next writer of `path` replaces. A device or pipe is written to as it is.
    """
    if path.exists() and not path.is_file():
        yield path
        return
    new = _beside(path, "new")
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        new.unlink(missing_ok=True)
        new.touch()
        mode = new.stat().st_mode
        yield new
        _share(new, mode)
        os.replace(new, path)
    finally:
        new.unlink(missing_ok=True)


@contextmanager
def whole_folder(folder: Path) -> Iterator[Path]:
    """Within, an empty folder beside `folder` to fill; afterwards it is `folder`, in place of an older one.

    A failure leaves the older one as it was, and nothing else. So does a kill, but for a hidden `.NAME.new`,
    which the next writer of `folder` removes. No system call that Python has exchanges two folders, so two
    renames do: a kill between them leaves no `folder`, and the older one as `.NAME.old`, which the next
    writer puts back before it begins.
    """
    folder = folder.resolve()  # `.` has no name and no parent
    if folder.exists() and not folder.is_dir():
        raise NotADirectoryError(f"{folder} is a file")
    new, old = _beside(folder, "new"), _beside(folder, "old")
    folder.parent.mkdir(parents=True, exist_ok=True)
    if old.exists() and not folder.exists():
        os.replace(old, folder)
    shutil.rmtree(new, ignore_errors=True)
    try:
        new.mkdir()
        yield new
        mode = new.stat().st_mode
        for path in new.rglob("*"):
            _share(path, mode)
        _put(new, folder, old)
    finally:
        shutil.rmtree(new, ignore_errors=True)


def _put(new: Path, folder: Path, old: Path) -> None:
    if not folder.exists():
        os.replace(new, folder)
        return
    shutil.rmtree(old, ignore_errors=True)
    try:
        os.replace(folder, old)
        os.replace(new, folder)
    except BaseException:
        if not folder.exists():
            os.rename(old, folder)
        raise
    shutil.rmtree(old, ignore_errors=True)


def _beside(path: Path, age: str) -> Path:
    return path.with_name(f".{path.name}.{age}")


def _share(path: Path, mode: int) -> None:
    """Lets everybody read what the umask lets them, of which `mode` is what it makes of a new file or folder.
    safetensors lets nobody else read what it writes, and a server in a container runs as somebody else."""
    if path.is_file():
        have = path.stat().st_mode
        if mode & _READABLE & ~have:
            path.chmod(have | mode & _READABLE)


def write_bytes(path: Path, data: bytes) -> None:
    """See whole_file."""
    with whole_file(path) as new:
        new.write_bytes(data)


def write_text(path: Path, text: str) -> None:
    """See whole_file."""
    write_bytes(path, text.encode())


def write_json(path: Path, value: object) -> None:
    """See whole_file."""
    write_text(path, json.dumps(value, indent=1) + "\n")


def write_json_lines(path: Path, rows: Iterable[object]) -> None:
    """See whole_file."""
    write_text(path, "".join(json.dumps(row) + "\n" for row in rows))


def write_parquet(path: Path, table: pa.Table) -> None:
    """See whole_file."""
    import pyarrow.parquet as pq  # noqa: PLC0415 (commands that read no rows do without)

    with whole_file(path) as new:
        pq.write_table(table, new, compression="zstd")


def read_parquet(path: Path) -> pa.Table:
    """Raises DataError, one line, where there is no such file or it is no Parquet."""
    import pyarrow as pa  # noqa: PLC0415 (see write_parquet)
    import pyarrow.parquet as pq  # noqa: PLC0415

    if not path.is_file():
        raise DataError(f"{path}: no such file")
    try:
        return pq.read_table(path)
    except (pa.ArrowException, OSError) as error:
        raise DataError(f"{path}: cannot be read as Parquet ({first_line(error)})") from error
