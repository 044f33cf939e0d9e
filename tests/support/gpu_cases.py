"""Cases for the tests of the GPU suite's runner, importable by its worker processes."""

from __future__ import annotations

import math
import os
import time

import torch

from benchmarks.gpu.findings import Findings, SkippedError
from benchmarks.gpu.machine import Machine

GPU = torch.device("cuda", 0)


class StandIn(Machine):
    """A machine that says it has a GPU."""

    def describe(self) -> dict[str, str | float]:
        return {"device": "stand-in"}


def open_cpu() -> Machine:
    return Machine(torch.device("cpu"), "reference", 1e9)


def open_stand_in() -> Machine:
    """In a process of its own: replaces what a worker asks of torch.cuda."""
    torch.cuda.reset_peak_memory_stats = lambda device=None: None
    torch.cuda.max_memory_allocated = lambda device=None: 3 << 30
    torch.cuda.empty_cache = lambda: None
    torch.cuda.synchronize = lambda device=None: None
    return StandIn(GPU, "triton", 1.0)


def right(machine: Machine, sizes: object, findings: Findings) -> None:
    findings.require("error", torch.tensor([0.1, 0.2]), 0.5)


def wrong(machine: Machine, sizes: object, findings: Findings) -> None:
    findings.require("error", torch.tensor([0.1, math.nan]), 0.5)


def raising(machine: Machine, sizes: object, findings: Findings) -> None:
    raise RuntimeError("no such thing")


def one_form_raising(machine: Machine, sizes: object, findings: Findings) -> None:
    for form in ("plain", "tied", "low-rank"):
        with findings.attempt(form):
            if form == "tied":
                raise RuntimeError("no such thing")
            findings.require(form, 0.1, 0.5)


def skipping(machine: Machine, sizes: object, findings: Findings) -> None:
    raise SkippedError("not here")


def dying(machine: Machine, sizes: object, findings: Findings) -> None:
    os._exit(7)


def hanging(machine: Machine, sizes: object, findings: Findings) -> None:
    with findings.attempt("quick"):
        findings.require("error", 0.1, 0.5)
    time.sleep(60)


def losing(machine: Machine, sizes: object, findings: Findings) -> None:
    def gone(device: object = None) -> None:
        raise RuntimeError("an illegal memory access was encountered")

    torch.cuda.synchronize = gone
    raise RuntimeError("an illegal memory access was encountered")
