"""What every loss returns."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True, slots=True)
class LossResult:
    """per_example: [B], to be averaged. metrics: scalars without gradient, averages over the batch."""

    per_example: Tensor
    metrics: dict[str, Tensor]
