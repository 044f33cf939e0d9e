"""Set-point on the measured value of a head: steers no harder than reaching it takes, and not beyond it.

    lift = max(0, σ(target − V(s))) / min(max_tokens − t, horizon)

and b is the smallest with `σ u E_{σb}[Ā] ≥ lift`, or the strength. V is the unguided forecast, in standard
units; u, the manifest's `value_per_advantage`, is how much of it a unit of the head's advantage brings. Of a
head with the weight w, which makes w of its own advantage part of Ā, σ is the sign of w times the strength's
and u is divided by |w|: negative weights and strengths hold values from above.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from trimtab.guidance.controllers.base import (
    Controller,
    Heads,
    Limits,
    RowState,
    check_horizon,
    check_number,
)
from trimtab.guidance.errors import ControllerError

if TYPE_CHECKING:
    from torch import Tensor

MAX_VALUE = 100.0


@dataclass(frozen=True, slots=True)
class Target(Controller):
    """head: whose value is held, one of those that steer. value: in standard units of the policy's own
    replies. horizon: tokens within which it is to be reached, at most."""

    head: str
    value: float
    horizon: int = 16

    def __post_init__(self) -> None:
        if not isinstance(self.head, str):
            raise ControllerError("target.head", f"must be the name of a head, got {self.head!r}")
        check_number(self.value, "target.value", -MAX_VALUE, MAX_VALUE)
        check_horizon(self.horizon)

    def check(self, heads: Heads) -> None:
        key, head = "target.head", heads.get(self.head)
        if head is None:
            raise ControllerError(key, f"no such head; loaded heads: {', '.join(heads) or 'none'}")
        if not head.has_value:
            raise ControllerError(key, f"{self.head!r} has no value and cannot hold a target")
        if head.value_per_advantage is None or head.value_per_advantage <= 0:
            slope = head.value_per_advantage
            was = "was not measured" if slope is None else f"is {slope:g}, not above 0"
            raise ControllerError(
                key, f"{self.head!r} cannot hold a target: its manifest's value_per_advantage {was}"
            )
        if not head.weight:
            raise ControllerError(
                key, f"{self.head!r} must steer to hold a target: give it a weight in guidance.heads"
            )

    def check_rule(self, kind: str, adds_scores: bool) -> None:
        if adds_scores:
            what = f"cannot be held by rule {kind}, whose scores lift no value by a slope that is known"
            raise ControllerError("target", f"{what}; leave it out, or use tilt")

    def numbers(self, heads: Heads) -> tuple[float, ...]:
        head = heads[self.head]
        assert head.value_per_advantage is not None
        sign = 1.0 if head.weight > 0 else -1.0
        gain = head.value_per_advantage / abs(head.weight)
        return float(head.index), self.value, sign, gain, float(self.horizon)

    @staticmethod
    def limits(numbers: Sequence[Tensor], rows: RowState) -> Limits:
        column, target, sign, gain, horizon = numbers
        assert rows.values is not None
        value = rows.values.gather(1, column.long()[:, None])[:, 0]
        missing = (rows.strength.sign() * sign * (target - value)).clamp(min=0)
        return Limits(lift=missing / rows.num_left.minimum(horizon) / gain)
