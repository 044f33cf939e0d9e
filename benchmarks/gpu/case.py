"""A case: one question to the device, answered by a function of machine and sizes."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from benchmarks.gpu.findings import Findings
from benchmarks.gpu.machine import Machine


@dataclass(frozen=True, slots=True)
class Case:
    """kind: a check is right or wrong, a benchmark measures. seconds: after which it is stopped.

    run: fills the findings; raises SkippedError where the case cannot be answered. sizes: which of its part's
    sizes it takes instead, on a GPU.
    """

    kind: Literal["check", "benchmark"]
    run: Callable[[Machine, Any, Findings], None]
    seconds: float
    sizes: Mapping[str, Any] = field(default_factory=dict)

    def narrowed(self, sizes: Any) -> Any:
        return dataclasses.replace(sizes, **self.sizes) if self.sizes else sizes
