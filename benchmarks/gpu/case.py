"""Case: one question to the device, answered by a function of machine and sizes, and when it is asked.

By itself, since the kernels' and the engine's modules own their cases and the registry reads those.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

import torch

from benchmarks.gpu.findings import Findings
from benchmarks.gpu.machine import Machine
from benchmarks.gpu.timing import Repeats

# The most telling first: kernels at the shape that serving has, the engine, all that was left over, what is
# slow to set up, and last what others' libraries may compile for minutes.
Turn = Literal["first", "engine", "afterwards", "late", "last"]
TURNS: tuple[Turn, ...] = get_args(Turn)

# Sizes of the kernels' cases. FIRST: checks once in the type and at the shape that serving has. FEW, REST: of
# benchmarks, first and afterwards.
FIRST: Mapping[str, Any] = {
    "dtypes": (torch.bfloat16,),
    "head_shapes": ((4096, 128256),),
    "adapter_shapes": ((4096, 64),),
    "batch_sizes": (1, 16, 17, 33, 64),
}
FEW: Mapping[str, Any] = {
    "repeats": Repeats(5, 30),
    "fused_rows": (1, 16, 64),
    "logit_rows": (64,),
    "adapter_rows": (1, 64),
    "truncated_rows": (64,),
    "contexts": ((1, 8192), (64, 1024)),
}
REST: Mapping[str, Any] = {
    "repeats": Repeats(5, 30),
    "fused_rows": (8, 32, 128),
    "logit_rows": (1, 128, 288),
    "adapter_rows": (288,),
    "truncated_rows": (1, 128),
    "contexts": ((288, 512), (8, 1024)),
}


@dataclass(frozen=True, slots=True)
class Case:
    """kind: a check is right or wrong, a benchmark measures. seconds: after which it is stopped.

    run: fills the findings; raises SkippedError where the case cannot be answered. sizes: which of its part's
    sizes it takes instead, on a GPU. turn: when it runs; within one, checks come first.
    """

    kind: Literal["check", "benchmark"]
    run: Callable[[Machine, Any, Findings], None]
    seconds: float
    sizes: Mapping[str, Any] = field(default_factory=dict)
    turn: Turn = "first"

    def narrowed(self, sizes: Any) -> Any:
        return dataclasses.replace(sizes, **self.sizes) if self.sizes else sizes

    @property
    def place(self) -> tuple[int, bool]:
        """By which cases are put in order."""
        return TURNS.index(self.turn), self.kind == "benchmark"
