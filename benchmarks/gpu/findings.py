"""Findings of a case: numbers against limits, times beside floors, ratios against aims; and the report."""

from __future__ import annotations

import contextlib
import hashlib
import math
import time
import traceback
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor

from benchmarks.common import Spread, write_document


@dataclass(frozen=True, slots=True)
class Limit:
    """A number that is right if it is at most so much; NaN never is."""

    value: float
    at_most: float

    @property
    def is_kept(self) -> bool:
        return self.value <= self.at_most


@dataclass(frozen=True, slots=True)
class Aim:
    """A ratio that the design wants on one side of a bound. Missing it is news, not an error."""

    what: str
    value: float
    at_least: float | None = None
    at_most: float | None = None

    @property
    def is_reached(self) -> bool:
        low = -math.inf if self.at_least is None else self.at_least
        high = math.inf if self.at_most is None else self.at_most
        return low <= self.value <= high


@dataclass(frozen=True, slots=True)
class Measurement:
    """Times of one op in one shape.

    floor: microseconds that the memory traffic (or the arithmetic) alone would take; None where none is
        stated. against: the same job done by others.
    """

    op: str
    shape: str
    rows: int
    time: Spread
    floor: float | None = None
    against: dict[str, Spread] = field(default_factory=dict)

    def as_dict(self) -> dict[str, Any]:
        return {
            "op": self.op,
            "shape": self.shape,
            "rows": self.rows,
            "microseconds": self.time.as_dict(),
            "floor_microseconds": _round(self.floor),
            "of_floor": None if self.floor is None else _round(self.floor / self.time.median),
            "against": {
                name: {"microseconds": spread.as_dict(), "ratio": _round(self.time.median / spread.median)}
                for name, spread in self.against.items()
            },
        }


class SkippedError(Exception):
    """The case cannot be answered here; the message says why."""


class DeviceLostError(Exception):
    """The device answers no more, as after a wild access."""


def _nobody(findings: Findings) -> None:
    pass


@dataclass(slots=True)
class Findings:
    """Filled by a case as it goes, so that what was found is kept whatever comes after.

    limits: the worst value seen under each name. facts: whatever else is worth a line in the report.
    tables: rows of named figures. errors: what was raised, by the form of the case that raised it.
    publish: told after every form. answers: whether the device still does.
    """

    limits: dict[str, Limit] = field(default_factory=dict)
    measurements: list[Measurement] = field(default_factory=list)
    aims: list[Aim] = field(default_factory=list)
    facts: dict[str, float | int | str] = field(default_factory=dict)
    tables: dict[str, list[dict[str, float | int | str]]] = field(default_factory=dict)
    errors: dict[str, str] = field(default_factory=dict)
    publish: Callable[[Findings], None] = _nobody
    answers: Callable[[], bool] = lambda: True

    @contextlib.contextmanager
    def attempt(self, form: str) -> Iterator[None]:
        """One form of a case: what it raises is noted and costs nothing but this form.

        Raises DeviceLostError where the device answers no more.
        """
        try:
            yield
        except SkippedError:
            raise
        except Exception as error:
            self.errors[form] = describe(error)
            if not self.answers():
                raise DeviceLostError(form) from error
        self.publish(self)

    def require(self, what: str, value: Tensor | float, at_most: float) -> None:
        """Hold a number (of a tensor the largest, and NaN if any is) against its limit."""
        number = _largest(value)
        worst = self.limits.get(what)
        if worst is None or number > worst.value or math.isnan(number):
            self.limits[what] = Limit(number, at_most)

    def require_none(self, what: str, is_wrong: Tensor) -> None:
        """Count the wrong ones; there must be none."""
        self.require(what, float(is_wrong.sum()), 0)

    def require_no_waits(self, what: str, waits: Sequence[warnings.WarningMessage]) -> None:
        """The host must never wait for the device; where it did is named."""
        self.require(what, len(waits), 0)
        for wait in waits:
            self.facts[f"{what}, at"] = f"{'/'.join(Path(wait.filename).parts[-2:])}:{wait.lineno}"

    @property
    def broken(self) -> list[str]:
        return [
            f"{what}: {limit.value:.3g}, at most {limit.at_most:.3g}"
            for what, limit in self.limits.items()
            if not limit.is_kept
        ] + [f"{form}: {error.rpartition(chr(10))[2]}" for form, error in self.errors.items()]

    def as_dict(self) -> dict[str, Any]:
        return {
            "limits": {
                what: {"value": _round(limit.value), "at_most": limit.at_most}
                for what, limit in self.limits.items()
            },
            "measurements": [measurement.as_dict() for measurement in self.measurements],
            "aims": [
                {
                    "what": aim.what,
                    "value": _round(aim.value),
                    "at_least": aim.at_least,
                    "at_most": aim.at_most,
                    "is_reached": aim.is_reached,
                }
                for aim in self.aims
            ],
            "facts": self.facts,
            "tables": self.tables,
            "errors": self.errors,
        }


TRACEBACK_FRAMES = 4


def describe(error: BaseException) -> str:
    """What was raised and where, without a path of this machine: reports are committed."""
    frames = traceback.extract_tb(error.__traceback__)[1:][-TRACEBACK_FRAMES:]
    places = [f"{'/'.join(Path(frame.filename).parts[-2:])}:{frame.lineno} {frame.name}" for frame in frames]
    return f"{', '.join(places)}\n{type(error).__name__}: {error}"


def _largest(value: Tensor | float) -> float:
    if not isinstance(value, Tensor):
        return float(value)
    return float(value.double().amax()) if value.numel() else 0.0


def _round(value: float | None) -> float | None:
    """Four significant digits; None also for what JSON cannot say."""
    return None if value is None or not math.isfinite(value) else float(f"{value:.4g}")


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
        if self.path is not None:
            write_document(self.path, self.as_dict())


def digest(folder: str) -> str:
    """Of the Python files in a folder of the checkout: which code a report speaks of."""
    root = Path(__file__).resolve().parents[2] / folder
    sha = hashlib.sha256()
    for path in sorted(root.glob("*.py")):
        sha.update(path.name.encode() + b"\0" + path.read_bytes())
    return sha.hexdigest()[:12]
