"""Runner: runs cases in order within one budget of time, and records each."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping
from typing import Any

from benchmarks.gpu.case import Case
from benchmarks.gpu.machine import Machine
from benchmarks.gpu.report import Report
from benchmarks.gpu.worker import Key, Record, Worker, WorkerLostError

STOP_SECONDS = 5.0
LEAST_SECONDS = 2.0  # with which no case is worth beginning

Say = Callable[[str], Any]


class Runner:
    """cases: by part and name, in the order in which they run, each with the sizes it takes.

    seconds: for all of them; a case is stopped at its own limit or when these are over. start_method: how
    workers are started; anything but "spawn" is for tests.
    """

    def __init__(
        self,
        cases: Mapping[Key, tuple[Case, object]],
        open_machine: Callable[[], Machine],
        *,
        seconds: float,
        start_method: str = "spawn",
    ) -> None:
        self._cases, self._worker_arguments = cases, (cases, open_machine, start_method)
        self._worker: Worker | None = None
        self._deadline = time.monotonic() + seconds

    def run(self, report: Report, say: Say = print) -> None:
        """Fill the report; say one JSON document for every result, and a line for every case."""
        try:
            for key, (case, _) in self._cases.items():
                part, name = key
                record = self._run(key, case, report, say)
                report.add(part, name, record)
                last = record["message"].strip().rpartition("\n")[2]
                say(f"{part}/{name}: {record['status']}, {record['seconds']:.1f} s {last}".rstrip())
        finally:
            self._stop_worker(STOP_SECONDS)

    def _run(self, key: Key, case: Case, report: Report, say: Say) -> Record:
        left = self._deadline - time.monotonic()
        if left < LEAST_SECONDS:
            return _unfinished(case, "not run", "no time is left")
        start = time.monotonic()
        try:
            worker = self._begin(report, say)
            news = _News(key, say)
            record = worker.run(key, min(case.seconds, self._deadline - time.monotonic()), news.tell)
            news.tell(record)
        except WorkerLostError as error:
            self._stop_worker()
            return error.found | _unfinished(case, "failed", str(error), time.monotonic() - start)
        if record["lost"]:
            self._stop_worker()
        return record

    def _begin(self, report: Report, say: Say) -> Worker:
        if self._worker is None:
            self._worker = Worker(*self._worker_arguments)
            say(json.dumps({"machine": self._worker.machine}))
        for part, _ in self._cases:
            report.machine.setdefault(part, self._worker.machine)
        return self._worker

    def _stop_worker(self, seconds: float = 0.0) -> None:
        if self._worker is not None:
            self._worker.stop(seconds)
            self._worker = None


class _News:
    """Says of what a case has found what was not said before."""

    def __init__(self, key: Key, say: Say) -> None:
        self._case, self._say = "/".join(key), say
        self._told: set[str] = set()

    def tell(self, found: Record) -> None:
        for kind, entries in _entries(found):
            line = json.dumps({"case": self._case, kind: entries})
            if line not in self._told:
                self._told.add(line)
                self._say(line)


def _entries(found: Record) -> list[tuple[str, Any]]:
    limits = {what: limit["value"] for what, limit in found.get("limits", {}).items()}
    lists = [
        *(("limit", {what: value}) for what, value in limits.items()),
        *(("time", one) for one in found.get("measurements", ())),
        *(("aim", one) for one in found.get("aims", ())),
        *(("fact", {what: value}) for what, value in found.get("facts", {}).items()),
        *(("table", {what: rows}) for what, rows in found.get("tables", {}).items()),
        *(("error", {form: error}) for form, error in found.get("errors", {}).items()),
    ]
    return lists


def _unfinished(case: Case, status: str, message: str, seconds: float = 0.0) -> Record:
    return {"kind": case.kind, "status": status, "message": message, "seconds": round(seconds, 2)}
