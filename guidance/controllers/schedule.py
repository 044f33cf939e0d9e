"""Schedule of the strength over a reply: constant, a warm-up to it, or a decay from it.

warmup:  β_max = |strength| · min(1, (t + 1) / tokens)
decay:   β_max = |strength| · max(0, 1 − t / tokens)
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from trimtab.guidance.controllers.base import Controller, Heads, Limits, RowState, check_integer
from trimtab.guidance.errors import ControllerError

if TYPE_CHECKING:
    from torch import Tensor

KINDS = ("constant", "warmup", "decay")
MAX_TOKENS = 2**31 - 1


@dataclass(frozen=True, slots=True)
class Schedule(Controller):
    """kind: of KINDS. tokens: how many a warm-up or decay takes; a constant has none."""

    kind: str
    tokens: int | None = None

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise ControllerError("schedule.kind", f"must be one of {', '.join(KINDS)}, got {self.kind!r}")
        if self.kind == "constant":
            if self.tokens is not None:
                raise ControllerError("schedule.tokens", "a constant schedule has none; leave it out")
        elif self.tokens is None:
            raise ControllerError("schedule.tokens", f"is required by {self.kind}")
        else:
            check_integer(self.tokens, "schedule.tokens", 1, MAX_TOKENS)

    def numbers(self, heads: Heads) -> tuple[float, ...]:
        tokens = float(self.tokens or 1)
        start, step = {"constant": (1.0, 0.0), "warmup": (1.0, 1.0), "decay": (tokens, -1.0)}[self.kind]
        return start, step, tokens

    @staticmethod
    def limits(numbers: Sequence[Tensor], rows: RowState) -> Limits:
        start, step, tokens = numbers
        share = ((start + step * rows.num_drawn) / tokens).clamp(0, 1)
        return Limits(beta_max=rows.strength.abs() * share)
