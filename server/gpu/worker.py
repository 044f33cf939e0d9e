"""Runs cases in a process of its own, so that one which hangs or loses the device harms no other."""

from __future__ import annotations

import contextlib
import gc
import multiprocessing
import time
import traceback
from collections.abc import Callable, Mapping
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch

from trimtab.server.gpu.case import Case, SkippedError
from trimtab.server.gpu.findings import Findings
from trimtab.server.gpu.machine import Machine

START_SECONDS = 120.0
TRACEBACK_FRAMES = 4
Record = dict[str, Any]


class WorkerLostError(Exception):
    """The worker has ended or had to be stopped; the message says which."""


class Worker:
    """Starts the process and opens the machine in it. machine: what it says of itself."""

    def __init__(
        self,
        cases: Mapping[str, Case],
        open_machine: Callable[[], Machine],
        sizes: object,
        start_method: str = "spawn",
    ) -> None:
        context = multiprocessing.get_context(start_method)
        self._connection, theirs = context.Pipe()
        self._process = context.Process(  # type: ignore[attr-defined]
            target=_serve, args=(theirs, cases, open_machine, sizes), daemon=True
        )
        self._process.start()
        theirs.close()
        self.machine: Record = self._receive(START_SECONDS)

    def run(self, name: str, seconds: float) -> Record:
        """Run one case. Raises WorkerLostError, after which this worker is of no more use."""
        self._connection.send(name)
        return self._receive(seconds)

    def stop(self, seconds: float = 0.0) -> None:
        """seconds: in which it may end by itself."""
        with contextlib.suppress(OSError):  # it may have ended already
            self._connection.send(None)
        self._process.join(seconds)
        if self._process.is_alive():
            self._process.kill()
        self._process.join()
        self._connection.close()

    def _receive(self, seconds: float) -> Record:
        try:
            if not self._connection.poll(seconds):
                raise WorkerLostError(f"stopped after {seconds:.0f} s")
            record: Record = self._connection.recv()
        except EOFError:
            self._process.join()
            raise WorkerLostError(f"the process ended with code {self._process.exitcode}") from None
        return record


def _serve(
    connection: Connection, cases: Mapping[str, Case], open_machine: Callable[[], Machine], sizes: object
) -> None:
    machine = open_machine()
    connection.send(machine.describe())
    while (name := connection.recv()) is not None:
        connection.send(run_case(cases[name], machine, sizes))


def run_case(case: Case, machine: Machine, sizes: object) -> Record:
    """Everything the report holds of a case. lost: the device answers no more, as after a wild access."""
    start = time.perf_counter()
    findings = Findings()
    status, message, lost = "passed", "", False
    if machine.is_cuda:
        torch.cuda.reset_peak_memory_stats()
    try:
        findings = case.run(machine, sizes)
        if findings.broken:
            status, message = "failed", "; ".join(findings.broken)
    except SkippedError as reason:
        status, message = "skipped", str(reason)
    except Exception as error:
        status = "failed"
        message = _describe(error)
        lost = not _answers(machine)
        del error
    record = {
        "kind": case.kind,
        "status": status,
        "message": message,
        "seconds": round(time.perf_counter() - start, 2),
        "lost": lost,
        **findings.as_dict(),
    }
    if machine.is_cuda and not lost:
        record["peak_memory_gib"] = round(torch.cuda.max_memory_allocated() / 2**30, 3)
        gc.collect()
        torch.cuda.empty_cache()
    return record


def _describe(error: Exception) -> str:
    """What was raised and where, without a path of this machine: reports are committed."""
    frames = traceback.extract_tb(error.__traceback__)[1:][-TRACEBACK_FRAMES:]
    places = [f"{'/'.join(Path(frame.filename).parts[-2:])}:{frame.lineno} {frame.name}" for frame in frames]
    return f"{', '.join(places)}\n{type(error).__name__}: {error}"


def _answers(machine: Machine) -> bool:
    if machine.is_cuda:
        try:
            torch.cuda.synchronize()
        except RuntimeError:
            return False
    return True
