"""KL budget of a reply: spends what is left of it evenly over the tokens ahead, and never more.

    kl_cap = (kl_budget − spent) / min(max_tokens − t, horizon)

with `spent` the sum of the reply's KLs so far, as it is reported.
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

if TYPE_CHECKING:
    from torch import Tensor

MAX_NATS = 1e6
# The KL that caps a token and the one that is reported are measured apart, in fp32: each is right to 1e-5
# nats and a 10 000th, so that a budget kept to the last bit would be passed by as much.
USABLE = 1 - 2.0**-10
KEPT_BACK = 2e-5


@dataclass(frozen=True, slots=True)
class KLBudget(Controller):
    """kl_budget: nats per reply. horizon: tokens that it is spread over, at most: few spend early."""

    kl_budget: float
    horizon: int = 32

    def __post_init__(self) -> None:
        check_number(self.kl_budget, "kl_budget", 0, MAX_NATS, above=True)
        check_horizon(self.horizon)

    def numbers(self, heads: Heads) -> tuple[float, ...]:
        return self.kl_budget, float(self.horizon)

    @staticmethod
    def limits(numbers: Sequence[Tensor], rows: RowState) -> Limits:
        budget, horizon = numbers
        left = ((budget - rows.spent) * USABLE - KEPT_BACK).clamp(min=0)
        return Limits(kl_cap=left / rows.num_left.minimum(horizon))
