"""Lookahead: tries the likeliest next tokens, and weighs each by the value of the reply it would make."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from trimtab.guidance.rules.base import Rule, check_integer, check_word

if TYPE_CHECKING:
    from torch import Tensor

MAX_PROBES = 64


@dataclass(frozen=True, slots=True)
class Lookahead(Rule):
    """`z(a) + β(V(s·a) − mean)` over the k likeliest tokens a of the base, the mean being under the base
    among them; V the heads' values, weighted and in standard units, β the strength.

    What ARGS (M. Khanov et al. 2024, arXiv 2402.01694), RAD (H. Deng and C. Raffel 2023, arXiv 2310.09520),
    FUDGE (K. Yang and D. Klein 2021, arXiv 2104.05218), CD (S. Mudgal et al. 2023, arXiv 2310.17022) and VAS
    (S. Han et al. 2024, arXiv 2405.06639) do one reply at a time: here the k tokens of all replies in a batch
    are one forward pass, over keys and values that are there already.

    Controllers lessen β, and nothing is dropped where they leave none. What dropping costs counts for a limit
    of KL: where that alone passes it, nothing is dropped either. A target reads what is added as it is: V in
    standard units.

    Cost: k + 1 tokens are computed for each one drawn.

    k: how many tokens are tried. others: `drop` draws among these alone, `keep` leaves the others at the
    base's logits.
    """

    k: int = 10
    others: str = "drop"

    kind: ClassVar[str] = "lookahead"
    wide: ClassVar[str] = "k"
    reads_values: ClassVar[bool] = True
    adds_values: ClassVar[bool] = True

    def __post_init__(self) -> None:
        check_integer("k", self.k, 1, MAX_PROBES)
        check_word("others", self.others, ("drop", "keep"))

    @property
    def num_probes(self) -> int:
        return self.k

    @property
    def tilts(self) -> bool:
        return False


def lookahead_advantage(logits: Tensor, values: Tensor, is_tried: Tensor) -> Tensor:
    """`V(s·a) − mean` of tried tokens, 0 of others: f32[R, K].

    logits: f32[R, K] of the base at the likeliest tokens. values: f32[R, K] after each. is_tried: bool[R, K].
    """
    weights = logits.masked_fill(~is_tried, float("-inf")).softmax(-1)
    centred = values - (weights * values).sum(-1, keepdim=True)
    return centred.masked_fill(~is_tried, 0.0)
