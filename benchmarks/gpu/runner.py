"""Runner: runs cases in order within one budget of time, and records each."""

from __future__ import annotations

import contextlib
import json
import multiprocessing
import time
from collections.abc import Callable, Mapping
from multiprocessing.connection import Connection
from typing import Any

import torch

from benchmarks.gpu.case import Case
from benchmarks.gpu.findings import DeviceLostError, Findings, Report, SkippedError, describe
from benchmarks.gpu.machine import Machine
from trimtab.kernels.dispatch import Compilation, listen

START_SECONDS = 120.0
Record = dict[str, Any]
Key = tuple[str, str]  # part and name of a case
Progress = Callable[[Record], None]


class WorkerLostError(Exception):
    """The worker has ended or had to be stopped; the message says which. found: what it had found by then."""

    def __init__(self, message: str, found: Record | None = None) -> None:
        super().__init__(message)
        self.found = found or {}


class Worker:
    """Starts the process and opens the machine in it. machine: what it says of itself.

    cases: by part and name, each with the sizes it takes.
    """

    def __init__(
        self,
        cases: Mapping[Key, tuple[Case, object]],
        open_machine: Callable[[], Machine],
        start_method: str = "spawn",
    ) -> None:
        context = multiprocessing.get_context(start_method)
        self._connection, theirs = context.Pipe()
        self._process = context.Process(  # type: ignore[attr-defined]
            target=_serve, args=(theirs, cases, open_machine), daemon=True
        )
        self._process.start()
        theirs.close()
        _, self.machine = self._receive(START_SECONDS)

    def run(self, key: Key, seconds: float, on_progress: Progress) -> Record:
        """Run one case; on_progress hears all that it has found, again and again.

        Raises WorkerLostError, after which this worker is of no more use.
        """
        self._connection.send(key)
        deadline = time.monotonic() + seconds
        found: Record = {}
        while True:
            try:
                is_done, record = self._receive(deadline - time.monotonic())
            except WorkerLostError as error:
                reason = f"stopped after {seconds:.0f} s" if self._process.is_alive() else str(error)
                raise WorkerLostError(reason, found) from None
            if is_done:
                return record
            found = record
            on_progress(record)

    def stop(self, seconds: float = 0.0) -> None:
        """seconds: in which it may end by itself."""
        with contextlib.suppress(OSError):  # it may have ended already
            self._connection.send(None)
        self._process.join(seconds)
        if self._process.is_alive():
            self._process.kill()
        self._process.join()
        self._connection.close()

    def _receive(self, seconds: float) -> tuple[bool, Record]:
        try:
            if not self._connection.poll(max(seconds, 0)):
                raise WorkerLostError(f"stopped after {seconds:.0f} s")
            message: tuple[bool, Record] = self._connection.recv()
        except (EOFError, ConnectionResetError):
            self._process.join()
            raise WorkerLostError(f"the process ended with code {self._process.exitcode}") from None
        return message


def _serve(
    connection: Connection,
    cases: Mapping[Key, tuple[Case, object]],
    open_machine: Callable[[], Machine],
) -> None:
    machine = open_machine()
    connection.send((True, machine.describe()))
    while (key := connection.recv()) is not None:
        case, sizes = cases[key]
        record = run_case(case, machine, sizes, lambda found: connection.send((False, found)))
        connection.send((True, record))


def run_case(
    case: Case, machine: Machine, sizes: object, on_progress: Progress = lambda found: None
) -> Record:
    """Everything the report holds of a case. lost: the device answers no more, as after a wild access."""
    start = time.perf_counter()
    compilations: list[Compilation] = []
    listen(compilations.append)
    findings = Findings(publish=lambda found: on_progress(found.as_dict()), answers=machine.answers)
    status, message, lost = "passed", "", False
    if machine.is_cuda:
        torch.cuda.reset_peak_memory_stats()
    try:
        case.run(machine, sizes, findings)
    except SkippedError as reason:
        status, message = "skipped", str(reason)
    except DeviceLostError:
        status, lost = "failed", True
    except Exception as error:
        status, message = "failed", describe(error)
        lost = not machine.answers()
        del error
    if findings.broken:
        status = "failed"
        message = "; ".join([*([message] if message else []), *findings.broken])
    listen(None)
    record = {
        "kind": case.kind,
        "status": status,
        "message": message,
        "seconds": round(time.perf_counter() - start, 2),
        "lost": lost,
        "compiled": _by_kernel([one for one in compilations if not one.is_cached]),
        "from_cache": sum(one.is_cached for one in compilations),
        **findings.as_dict(),
    }
    if machine.is_cuda and not lost:
        record["peak_memory_gib"] = round(torch.cuda.max_memory_allocated() / 2**30, 3)
    return record


def _by_kernel(compilations: list[Compilation]) -> dict[str, float]:
    """Seconds that compiling took, by kernel."""
    seconds: dict[str, float] = {}
    for one in compilations:
        seconds[one.kernel] = round(seconds.get(one.kernel, 0.0) + one.seconds, 2)
    return seconds


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
