"""Input files of a run: kept by hash, so that a run goes on with what it was begun with, or not at all."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path

from trimtab.guidance.errors import DataError
from trimtab.guidance.files import write_json

INPUTS_FILE = "inputs.json"


def check_inputs(run: Path, inputs: Mapping[str, tuple[Path, Sequence[Path]]], fix: str) -> None:
    """Keeps the contents' hashes in the run's folder.

    inputs: by name what was given, and the files that it means. fix: what to do else. Raises DataError where
    one has changed since the run was begun.
    """
    before = kept_hashes(run)
    now = {name: hash_of(files) for name, (_, files) in inputs.items()}
    for name, (given, _) in inputs.items():
        if before.get(name, now[name]) != now[name]:
            raise DataError(
                f"{given} has changed since {run} was begun with it: put it back as it was, or {fix}"
            )
    write_json(run / INPUTS_FILE, before | now)


def kept_hashes(run: Path) -> dict[str, str]:
    path = run / INPUTS_FILE
    found: dict[str, str] = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    return found


def hash_of(files: Sequence[Path]) -> str:
    """Of their contents in this order; "" of none."""
    whole = hashlib.sha256()
    for file in files:
        with file.open("rb") as data:
            whole.update(hashlib.file_digest(data, "sha256").digest())
    return whole.hexdigest() if files else ""
