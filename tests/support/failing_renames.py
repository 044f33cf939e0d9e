"""Renames that fail: into the place of a file or folder, after what stood there was moved away."""

from __future__ import annotations

import os
from pathlib import Path

import pytest


def fail_into(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """From now on nothing that is new gets into `place`; what was moved away may come back."""
    replace = os.replace

    def failing(source: str | Path, target: str | Path) -> None:
        if Path(target) == place and Path(source).suffix == ".new":
            raise OSError(28, "No space left on device")
        replace(source, target)

    monkeypatch.setattr("trimtab.guidance.files.os.replace", failing)


def contents(folder: Path) -> dict[str, bytes]:
    """Of every file in and below the folder, hidden ones too."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
