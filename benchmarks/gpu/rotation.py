"""Rotation of an op's inputs while it is timed, ours beside others', so that every call finds them cold."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from benchmarks.common import Spread
from benchmarks.gpu.findings import Findings, Measurement
from benchmarks.gpu.machine import Machine
from benchmarks.gpu.timing import Call, Repeats, num_copies, time_calls


@dataclass(frozen=True, slots=True)
class Job:
    """One op on one set of inputs, and others' ways to do the same with them."""

    ours: Call
    theirs: Mapping[str, Call]


def measure(
    findings: Findings,
    machine: Machine,
    repeats: Repeats,
    make: Callable[[int], Job],
    *,
    op: str,
    shape: str,
    rows: int,
    num_bytes: float,
    floor: float | None = None,
) -> Measurement | None:
    """Ours first, then each of the others; None where ours fails, which costs no other figure.

    make: the job on a fresh set of inputs. num_bytes: what one call has to move, from which the floor
    follows where it is not given.
    """
    form = f"{op}, {rows} rows, {shape}"
    floor = machine.floor(num_bytes) if floor is None else floor
    found, jobs = None, []

    def time(calls: list[Call]) -> Spread:
        return time_calls(machine.device, calls, repeats)

    with findings.attempt(form):
        jobs = [make(copy) for copy in range(num_copies(machine.device, num_bytes))]
        found = Measurement(op, shape, rows, time([job.ours for job in jobs]), floor)
        findings.measurements.append(found)
    for name in jobs[0].theirs if found is not None else ():
        with findings.attempt(f"{form}: {name}"):
            found.against[name] = time([job.theirs[name] for job in jobs])
    return found
