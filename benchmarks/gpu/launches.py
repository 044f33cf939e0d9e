"""Launch: one call of a kernel on empty tensors, to be compiled and never run.

So is Triton's cache filled before a GPU is at hand, and seen without one that every kernel compiles. Each
module of benchmarks/gpu/kernels has its op's; the registry collects them.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from benchmarks.gpu.inputs import AttentionShape, dtype_name

BLOCK_SIZE = 16
ROWS = 16  # of launches that do not depend on how many there are


@dataclass(frozen=True, slots=True)
class Launch:
    """run: the call, which makes its tensors itself."""

    name: str
    run: Callable[[], object]


@dataclass(frozen=True, slots=True)
class LaunchShape:
    """A policy's sizes, and those of its heads. num_heads: loaded ones of each form."""

    hidden: int
    vocab: int
    attention: AttentionShape
    rank: int = 64
    num_heads: int = 1
    dtype: torch.dtype = torch.bfloat16
    intermediate: int = 14336
    norm_eps: float = 1e-6

    @property
    def name(self) -> str:
        return f"d={self.hidden} V={self.vocab} {dtype_name(self.dtype)}"

    def weight(self, width: int) -> Tensor:
        """[V, width]; never written, so it takes no memory."""
        return torch.empty(self.vocab, width, dtype=self.dtype)

    def logits(self) -> Tensor:
        return torch.empty(ROWS, self.vocab)

    def tilt(self) -> dict[str, Any]:
        place = torch.zeros(ROWS, dtype=torch.long)  # torch looks rows up by it
        return {"advantage": self.logits(), "advantage_row": place}


def keys(rows: int = ROWS) -> dict[str, Any]:
    """What a draw is keyed by."""
    integers = {name: torch.zeros(rows, dtype=torch.long) for name in ("seeds", "positions", "choices")}
    return {**integers, "temperature": torch.empty(rows)}


def cuts(names: tuple[str, ...] = ("min_p", "top_k", "top_p")) -> dict[str, Any]:
    return {name: torch.empty(ROWS, dtype=torch.long if name == "top_k" else torch.float32) for name in names}


def subsets(*names: str) -> list[tuple[str, ...]]:
    """All but the empty one."""
    return [subset for size in range(1, len(names) + 1) for subset in itertools.combinations(names, size)]
