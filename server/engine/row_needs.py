"""What the sampler must do for a row, known on the host without a look at the device. No torch here."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from trimtab.server.engine.request import Request

if TYPE_CHECKING:
    from trimtab.guidance.bank import HeadBank


@dataclass(frozen=True, slots=True)
class RowNeeds:
    """What a request's rows ask of the sampler, worked out once.

    Heads are columns of the bank. measuring: named heads with a value part, judging: those with a reward
    part, steering: those that carry a weight under a strength.
    """

    measuring: tuple[int, ...]
    judging: tuple[int, ...]
    steering: tuple[int, ...]
    logit_bias: tuple[tuple[int, float], ...]
    has_penalties: bool
    truncates: bool
    is_greedy: bool
    num_top: int
    trace: bool

    @classmethod
    def of(cls, request: Request, bank: HeadBank) -> RowNeeds:
        sampling, guidance = request.sampling, request.guidance
        named = {bank.names.index(name): weight for name, weight in guidance.heads}
        return cls(
            measuring=tuple(i for i in sorted(named) if bank.has_value[i]),
            judging=tuple(i for i in sorted(named) if bank.has_reward[i]),
            steering=tuple(sorted(i for i, w in named.items() if w)) if guidance.strength else (),
            logit_bias=sampling.logit_bias,
            has_penalties=sampling.has_penalties,
            truncates=sampling.truncates,
            is_greedy=sampling.temperature == 0,
            num_top=sampling.logprobs or 0,
            trace=guidance.trace,
        )
