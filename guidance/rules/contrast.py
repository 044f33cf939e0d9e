"""Contrast: weighs the policy under a prompt against the policy under another (classifier-free guidance)."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from trimtab.guidance.errors import RuleError
from trimtab.guidance.rules.base import Rule, check_number

if TYPE_CHECKING:
    from torch import Tensor

MAX_GAMMA = 10.0


@dataclass(frozen=True, slots=True)
class Contrast(Rule):
    """`log p_u + γ(log p_c − log p_u)`, with p_c under the request's prompt and p_u under the other one, both
    followed by the reply so far.

    G. Sanchez et al., "Stay on topic with Classifier-Free Guidance" (2023, arXiv 2306.17806); transformers
    calls γ `guidance_scale`. As a tilt of the base p_c it has the advantage `(γ − 1)(log p_c − log p_u)`, so
    KL is counted from p_c, bias and penalties included, and heads tilt it further. Controllers lessen the
    whole of it, `b ((γ − 1)(log p_c − log p_u) + strength · A)` with b of 1 or less, so that a limit of KL is
    one of the KL that is reported.

    Of the likely tokens alone where `alpha` is not 0: `{a: p_c(a) ≥ α max p_c}`, the plausibility constraint
    of X. L. Li et al., "Contrastive Decoding" (2022, arXiv 2210.15097). What it costs counts for a limit of
    KL, and where controllers leave b = 0 it does not hold.

    Cost: a second lane, so two tokens are computed for each one drawn, and the other prompt.

    negative_prompt: token ids. gamma: 1 is the policy itself, bit for bit, without a second lane; above 1
    goes away from the other prompt, below 0 towards it and beyond.
    """

    negative_prompt: tuple[int, ...] = ()
    gamma: float = 1.5
    alpha: float = 0.0

    kind: ClassVar[str] = "contrast"
    wide: ClassVar[str] = "negative_prompt"

    def __post_init__(self) -> None:
        if not self.negative_prompt:
            raise RuleError("negative_prompt", "is required, and has at least one token")
        check_number("gamma", self.gamma, -MAX_GAMMA, MAX_GAMMA)
        check_number("alpha", self.alpha, 0, 1)

    @property
    def num_lanes(self) -> int:
        return 2 if self.companion else 1

    @property
    def companion(self) -> tuple[int, ...]:
        return self.negative_prompt if self.gamma != 1 else ()

    @property
    def log_alpha(self) -> float:
        return math.log(self.alpha) if self.alpha else -math.inf


def contrast_advantage(logits: Tensor, others: Tensor, gamma: Tensor) -> Tensor:
    """`(γ − 1)(log p_c − log p_u)` up to a number per row, which changes no tilt: [R, V].

    logits, others: [R, V] of p_c and p_u. gamma: [R].
    """
    return (logits - others).mul_((gamma - 1)[:, None])


def implausible(logits: Tensor, log_alpha: Tensor) -> Tensor:
    """bool [R, V]: p_c(a) < α max p_c. logits: [R, V] of p_c. log_alpha: [R], −inf for no constraint."""
    return logits < logits.amax(-1, keepdim=True) + log_alpha[:, None]
