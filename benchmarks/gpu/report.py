"""The report of a run: one JSON document, whole on disk after every case."""

from __future__ import annotations

import hashlib
import json
import os
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

KIND = "trimtab gpu suite"
SOURCES = {"kernels": "kernels", "engine": "server/engine"}


def now() -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())


@dataclass(slots=True)
class Report:
    """machine: of each part that has begun. cases: by part and name. path: None keeps it in memory.

    cache: how many of Triton's programs were carried to this machine and how many compiled there.
    """

    command: str
    is_rehearsal: bool
    path: Path | None = None
    started: str = field(default_factory=now)
    machine: dict[str, dict[str, Any]] = field(default_factory=dict)
    cases: dict[str, dict[str, dict[str, Any]]] = field(default_factory=dict)
    cache: dict[str, float] = field(default_factory=dict)

    def add(self, part: str, name: str, record: dict[str, Any]) -> None:
        self.cases.setdefault(part, {})[name] = record
        self.save()

    @property
    def is_ok(self) -> bool:
        """Whether nothing failed and every check was run or skipped for a reason."""
        records = [record for cases in self.cases.values() for record in cases.values()]
        return bool(records) and not any(
            record["status"] == "failed" or (record["kind"] == "check" and record["status"] == "not run")
            for record in records
        )

    def as_dict(self) -> dict[str, Any]:
        return {
            "kind": KIND,
            "command": self.command,
            "rehearsal": self.is_rehearsal,
            "started": self.started,
            "written": now(),
            "sources": {part: digest(folder) for part, folder in SOURCES.items() if part in self.cases},
            "machine": self.machine,
            "cache": self.cache,
            "ok": self.is_ok,
            "cases": self.cases,
        }

    def save(self) -> None:
        if self.path is None:
            return
        self.path.parent.mkdir(parents=True, exist_ok=True)
        new = self.path.with_name(self.path.name + ".new")
        new.write_text(json.dumps(self.as_dict(), indent=1, allow_nan=False) + "\n", encoding="utf-8")
        os.replace(new, self.path)


def digest(folder: str) -> str:
    """Of the Python files in a folder of the checkout: which code a report speaks of."""
    root = Path(__file__).resolve().parents[2] / folder
    sha = hashlib.sha256()
    for path in sorted(root.glob("*.py")):
        sha.update(path.name.encode() + b"\0" + path.read_bytes())
    return sha.hexdigest()[:12]
