"""Entropy gate: steers only where the base is in doubt.

β_max = |strength| where the base's entropy is above entropy_gate, else 0
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from trimtab.guidance.controllers.base import Controller, Heads, Limits, RowState, check_number

if TYPE_CHECKING:
    from torch import Tensor

MAX_NATS = 100.0  # more than the logarithm of any vocabulary's size


@dataclass(frozen=True, slots=True)
class EntropyGate(Controller):
    """entropy_gate: nats."""

    READS_ENTROPY: ClassVar[bool] = True

    entropy_gate: float

    def __post_init__(self) -> None:
        check_number(self.entropy_gate, "entropy_gate", 0, MAX_NATS)

    def numbers(self, heads: Heads) -> tuple[float, ...]:
        return (self.entropy_gate,)

    @staticmethod
    def limits(numbers: Sequence[Tensor], rows: RowState) -> Limits:
        (gate,) = numbers
        assert rows.entropy is not None
        return Limits(beta_max=rows.strength.abs() * (rows.entropy > gate))
