"""Runs the cases of one part in order, within its time, and records each."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any

from trimtab.server.gpu.case import Case
from trimtab.server.gpu.machine import Machine
from trimtab.server.gpu.report import Report
from trimtab.server.gpu.worker import Record, Worker, WorkerLostError

PART_SECONDS = 450.0  # under eight minutes with what starting and stopping takes
STOP_SECONDS = 10.0


class Runner:
    """start_method: how workers are started; anything but "spawn" is for tests."""

    def __init__(
        self,
        cases: Mapping[str, Case],
        open_machine: Callable[[], Machine],
        sizes: object,
        *,
        seconds: float = PART_SECONDS,
        start_method: str = "spawn",
    ) -> None:
        self._cases, self._worker_arguments = cases, (cases, open_machine, sizes, start_method)
        self._worker: Worker | None = None
        self._deadline = time.monotonic() + seconds

    def run(self, part: str, report: Report, say: Callable[[str], Any] = print) -> None:
        """Fill the report. A case for whose budget too little time is left is recorded as not run."""
        try:
            for name, case in self._cases.items():
                record = self._run(part, name, case, report)
                report.add(part, name, record)
                last = record["message"].strip().rpartition("\n")[2]
                say(f"{part}/{name}: {record['status']}, {record['seconds']:.1f} s {last}")
        finally:
            self._stop_worker(STOP_SECONDS)

    def _run(self, part: str, name: str, case: Case, report: Report) -> Record:
        left = self._deadline - time.monotonic()
        if left < case.budget:
            return _unfinished(
                case, "not run", f"needs up to {case.budget:.0f} s, {max(left, 0):.0f} s are left"
            )
        start = time.monotonic()
        try:
            if self._worker is None:
                self._worker = Worker(*self._worker_arguments)
                report.machine[part] = self._worker.machine
            record = self._worker.run(name, case.budget)
        except WorkerLostError as error:
            self._stop_worker()
            return _unfinished(case, "failed", str(error), time.monotonic() - start)
        if record["lost"]:
            self._stop_worker()
        return record

    def _stop_worker(self, seconds: float = 0.0) -> None:
        if self._worker is not None:
            self._worker.stop(seconds)
            self._worker = None


def _unfinished(case: Case, status: str, message: str, seconds: float = 0.0) -> Record:
    return {"kind": case.kind, "status": status, "message": message, "seconds": round(seconds, 2)}
