"""KL cap of a token: no token costs more nats than it says.

KL(π_β‖π₀) ≤ max_kl
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from trimtab.guidance.controllers.base import Controller, Heads, Limits, RowState, check_number

if TYPE_CHECKING:
    from torch import Tensor

MAX_NATS = 1e4


@dataclass(frozen=True, slots=True)
class MaxKL(Controller):
    """max_kl: nats per token."""

    max_kl: float

    def __post_init__(self) -> None:
        check_number(self.max_kl, "max_kl", 0, MAX_NATS, above=True)

    def numbers(self, heads: Heads) -> tuple[float, ...]:
        return (self.max_kl,)

    @staticmethod
    def limits(numbers: Sequence[Tensor], rows: RowState) -> Limits:
        (cap,) = numbers
        return Limits(kl_cap=cap)
