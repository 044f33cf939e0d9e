"""Part of a reply that is steered: of a model that thinks between tags, its reasoning or its answer.

β_max = |strength| in the part, else 0; reasoning is what is drawn after the opening tag, up to and with the
closing one, and all else is answer
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from trimtab.guidance.controllers.base import Controller, Heads, Limits, RowState
from trimtab.guidance.errors import ControllerError

if TYPE_CHECKING:
    from torch import Tensor

PARTS = ("all", "reasoning", "answer")


@dataclass(frozen=True, slots=True)
class On(Controller):
    """on: of PARTS."""

    READS_PART: ClassVar[bool] = True

    on: str

    def __post_init__(self) -> None:
        if self.on not in PARTS:
            raise ControllerError("on", f"must be one of {', '.join(PARTS)}, got {self.on!r}")

    def check_model(self, can_reason: bool) -> None:
        if self.on != "all" and not can_reason:
            raise ControllerError("on", "this model has no tags of one token that it thinks between")

    def numbers(self, heads: Heads) -> tuple[float, ...]:
        return (float(PARTS.index(self.on)),)

    @staticmethod
    def limits(numbers: Sequence[Tensor], rows: RowState) -> Limits:
        (part,) = numbers
        assert rows.reasons is not None
        is_steered = (part == 0) | ((part == 1) == rows.reasons)
        return Limits(beta_max=rows.strength.abs() * is_steered)
