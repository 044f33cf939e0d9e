"""A case: one question to the device, answered by a function of machine and sizes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

from trimtab.server.gpu.findings import Findings
from trimtab.server.gpu.machine import Machine


class SkippedError(Exception):
    """The case cannot be answered here; the message says why."""


@dataclass(frozen=True, slots=True)
class Case:
    """kind: a check is right or wrong, a benchmark measures. budget: seconds after which it is stopped.

    run takes the machine and the sizes of its part, and raises SkippedError where it cannot be answered.
    """

    kind: Literal["check", "benchmark"]
    run: Callable[[Machine, Any], Findings]
    budget: float
