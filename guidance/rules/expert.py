"""Expert: adds to the policy's logits how a further model's differ from another's."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from trimtab.guidance.errors import RuleError
from trimtab.guidance.rules.base import Rule, check_number

if TYPE_CHECKING:
    from torch import Tensor

MAX_WEIGHT = 10.0
POLICY = "policy"
"""The policy, where a model is named; no expert has this name."""


@dataclass(frozen=True, slots=True)
class Expert(Rule):
    """`z + α(z⁺ − z⁻)`, with z⁺ the logits of a further model, the expert, and z⁻ those of an anti-expert, of
    the policy itself, or 0; all after the same tokens, and of the same vocabulary.

    Two further models: DExperts (A. Liu et al. 2021, arXiv 2105.03023), and with α = 1 proxy tuning (A. Liu
    et al. 2024, arXiv 2401.08565): a small model, tuned and not. None beside the expert: GenARM (Y. Xu et al.
    2024, arXiv 2410.08193), whose expert is a reward model of tokens and α its 1/β. The policy: DeRa (T. Liu
    et al. 2024, arXiv 2402.02992), `(1 − α) z + α z⁺` between an untuned policy and a tuned one and beyond;
    with α below 0, away from a weaker model, contrastive decoding (S. O'Brien and M. Lewis 2023, arXiv
    2309.09117). As a tilt of the base it has the advantage `α(z⁺ − z⁻)`, so KL is counted from the policy,
    and heads tilt it further; controllers lessen the whole of it, as that of Contrast.

    Of the likely tokens alone where `alpha` is not 0: `{a: π₀(a) ≥ alpha · max π₀}`; see Contrast.

    Cost: each further model computes all tokens of prompt and reply as the policy does.

    expert, anti_expert: names of loaded models; for anti_expert also `policy`, or None for z⁻ = 0. weight: α;
    0 is the policy itself, bit for bit, and runs no other model.
    """

    expert: str = ""
    anti_expert: str | None = None
    weight: float = 1.0
    alpha: float = 0.0

    kind: ClassVar[str] = "expert"
    wide: ClassVar[str] = "expert"

    def __post_init__(self) -> None:
        is_name = isinstance(self.expert, str) and self.expert not in ("", POLICY)
        if not is_name:
            raise RuleError("expert", "is required, and names a model that the server was started with")
        if not isinstance(self.anti_expert, str | None) or self.anti_expert in ("", self.expert):
            raise RuleError("anti_expert", f"must name another model than expert, or be {POLICY}")
        check_number("weight", self.weight, -MAX_WEIGHT, MAX_WEIGHT)
        check_number("alpha", self.alpha, 0, 1)

    @property
    def experts(self) -> tuple[str, ...]:
        named = (self.expert, self.anti_expert)
        return tuple(name for name in named if name not in (None, POLICY)) if self.weight else ()

    @property
    def log_alpha(self) -> float:
        return math.log(self.alpha) if self.alpha else -math.inf


def expert_advantage(experts: Tensor, others: Tensor, weight: Tensor) -> Tensor:
    """`α(z⁺ − z⁻)`: [R, V].

    experts, others: [R, V], z⁺ and z⁻, each up to a number per row, which changes no tilt. weight: α, [R].
    """
    return (experts - others).mul_(weight[:, None])
