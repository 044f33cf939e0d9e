"""Rollouts that are not complete yet: a folder of parts beside the file that they will be."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa

from trimtab.guidance.errors import UserError
from trimtab.guidance.files import read_parquet, write_json, write_parquet

RUN_FILE = "run.json"


@dataclass(frozen=True, slots=True)
class Partial:
    """Parts by number; one that is there is whole. run.json says what makes the rows."""

    folder: Path

    @staticmethod
    def is_begun(out: Path) -> bool:
        """Whether an earlier run has left parts."""
        return (out.with_suffix(".partial") / RUN_FILE).is_file()

    @classmethod
    def open(cls, out: Path, made_by: Mapping[str, Any]) -> Partial:
        """The folder of an earlier run that made its rows as this one does, or a new one.

        Raises UserError that names what differs.
        """
        folder = out.with_suffix(".partial")
        path = folder / RUN_FILE
        if path.is_file():
            _check_same(folder, json.loads(path.read_text(encoding="utf-8")), made_by)
        else:
            write_json(path, made_by)
        return cls(folder)

    def has(self, number: int) -> bool:
        return self._part(number).is_file()

    def write(self, number: int, table: pa.Table) -> None:
        write_parquet(self._part(number), table)

    def features_of(self, number: int) -> Path:
        """A file that is written before the part is."""
        return self.folder / f"part-{number:05}.safetensors"

    def read(self, number: int) -> pa.Table:
        return read_parquet(self._part(number))

    def remove(self) -> None:
        shutil.rmtree(self.folder)

    def _part(self, number: int) -> Path:
        return self.folder / f"part-{number:05}.parquet"


def _check_same(folder: Path, before: Mapping[str, Any], now: Mapping[str, Any]) -> None:
    different = [name for name in {**before, **now} if before.get(name) != now.get(name)]
    if different:
        changes = "; ".join(f"{name} was {before.get(name)}, is {now.get(name)}" for name in different)
        raise UserError(
            f"{folder} holds parts of another run ({changes}): run that to its end, name another --out, "
            "or remove the folder"
        )
