"""Controller: what one is asked, what it may read of a row, and the limits that it gives.

A request carries controllers as plain data, so nothing here loads torch: formulas are methods of the tensors
that they are given.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from trimtab.guidance.errors import ControllerError
from trimtab.guidance.ranges import is_integer_in, is_number_in, shown

if TYPE_CHECKING:
    from torch import Tensor

MAX_HORIZON = 4096


@dataclass(frozen=True, slots=True)
class HeadFacts:
    """What a controller may know of a loaded head. index: its column among the values. weight: the request's;
    0 of a head that it does not name. value_per_advantage: see AdvantagePart; 1 where a rule adds values."""

    index: int
    weight: float
    has_value: bool
    value_per_advantage: float | None


Heads = Mapping[str, HeadFacts]


@dataclass(frozen=True, slots=True)
class RowState:
    """What is known of a controller's rows [R] before their next token, on the device.

    strength: f64, the request's; 1 where a rule adds scores of its own, of which β is a share. num_drawn:
    f64, t, tokens that the reply has. num_left: f64, max_tokens − t, at least 1. spent: f64, nats of the
    reply so far.
    values: f32[R, H], the unguided V(s) in standard units; nan of heads that the request does not name, and
    None where no row is measured. entropy: f32, nats of the base; None where no controller reads it. reasons:
    bool, whether the token is drawn within the reasoning; None where no controller reads it.
    """

    strength: Tensor
    num_drawn: Tensor
    num_left: Tensor
    spent: Tensor
    values: Tensor | None = None
    entropy: Tensor | None = None
    reasons: Tensor | None = None


@dataclass(frozen=True, slots=True)
class Limits:
    """Of β = σb, with σ the sign of the strength, [R] each; None does not limit.

    beta_max: b at most. kl_cap: nats that the token may cost. lift: b need not be more than what makes
    σ E_β[Ā] this much, in units of the request's combined advantage.
    """

    beta_max: Tensor | None = None
    kl_cap: Tensor | None = None
    lift: Tensor | None = None


class Controller(ABC):
    """What one request asks of one controller; checked when made, under the names that the request uses.

    Controllers only lessen the strength: where several are given, each token gets the smallest |β| that one
    of them asks for.
    """

    __slots__ = ()
    READS_ENTROPY: ClassVar[bool] = False
    READS_PART: ClassVar[bool] = False

    def check(self, heads: Heads) -> None:  # noqa: B027 (most need no head)
        """Raise ControllerError for what the loaded heads, as the request weighs them, cannot do."""

    def check_model(self, can_reason: bool) -> None:  # noqa: B027 (most work with any model)
        """Raise ControllerError for what the model cannot do. can_reason: it thinks between tags."""

    def check_rule(self, kind: str, adds_scores: bool) -> None:  # noqa: B027 (most work with any rule)
        """Raise ControllerError for a rule that it cannot control. adds_scores: see Rule."""

    @abstractmethod
    def numbers(self, heads: Heads) -> tuple[float, ...]:
        """What `limits` needs of this request, constant over its replies. heads: checked."""

    @staticmethod
    @abstractmethod
    def limits(numbers: Sequence[Tensor], rows: RowState) -> Limits:
        """Of all rows that have this controller, without a wait of the host. numbers: f64[R] each."""


def check_number(value: object, key: str, low: float, high: float, *, above: bool = False) -> None:
    """Raises ControllerError unless low ≤ value ≤ high; above: low < value. nan is in no range."""
    ok = is_number_in(value, low, high) and not (above and value == low)
    allowed = f"above {low:g} and at most {high:g}" if above else f"{low:g}…{high:g}"
    if not ok:
        raise ControllerError(key, f"must be a number {allowed}, got {shown(value)}")


def check_integer(value: object, key: str, low: int, high: int) -> None:
    """Raises ControllerError unless value is an integer in low…high."""
    if not is_integer_in(value, low, high):
        raise ControllerError(key, f"must be an integer in {low}…{high}, got {shown(value)}")


def check_horizon(value: object) -> None:
    check_integer(value, "horizon", 1, MAX_HORIZON)
