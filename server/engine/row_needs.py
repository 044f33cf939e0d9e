"""Row needs: tell the sampler what rows ask for, known on the host without a look at the device. No torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from trimtab.server.engine.request import Request

if TYPE_CHECKING:
    from trimtab.guidance.heads.bank import HeadBank


@dataclass(frozen=True, slots=True)
class RowNeeds:
    """What a request's rows ask of the sampler, worked out once.

    Heads are columns of the bank. measuring: named heads with a value part, judging: those with a reward
    part, steering: those that carry a weight under a strength, remembering: measuring ones whose value does.
    """

    measuring: tuple[int, ...]
    judging: tuple[int, ...]
    steering: tuple[int, ...]
    remembering: tuple[int, ...]
    has_mask: bool
    has_bias: bool
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
            remembering=tuple(i for i in sorted(named) if bank.memory_sizes[i]),
            has_mask=request.grammar is not None,
            has_bias=bool(sampling.logit_bias),
            has_penalties=sampling.has_penalties,
            truncates=sampling.truncates,
            is_greedy=sampling.temperature == 0,
            num_top=sampling.logprobs or 0,
            trace=guidance.trace,
        )


@dataclass(frozen=True, slots=True)
class BatchNeeds:
    """What rows that are drawn together ask of the sampler. guided … traced: the rows that ask for each.

    active: heads that any row is steered by. remembering: heads whose value remembers, with the rows that are
    measured by it.
    """

    guided: tuple[int, ...]
    active: tuple[int, ...]
    masked: tuple[int, ...]
    penalised: tuple[int, ...]
    biases: bool
    top: tuple[int, ...]
    num_top: int
    traced: tuple[int, ...]
    truncates: bool
    measures: bool
    remembering: Mapping[int, tuple[int, ...]]
    any_greedy: bool
    any_sampled: bool

    @classmethod
    def of(cls, needs: Sequence[RowNeeds]) -> BatchNeeds:
        rows = list(enumerate(needs))
        return cls(
            guided=tuple(i for i, need in rows if need.steering),
            active=tuple(sorted({head for need in needs for head in need.steering})),
            masked=tuple(i for i, need in rows if need.has_mask),
            penalised=tuple(i for i, need in rows if need.has_penalties),
            biases=any(need.has_bias for need in needs),
            top=tuple(i for i, need in rows if need.num_top),
            num_top=max(need.num_top for need in needs),
            traced=tuple(i for i, need in rows if need.trace),
            truncates=any(need.truncates for need in needs),
            measures=any(need.measuring for need in needs),
            remembering={
                head: tuple(i for i, need in rows if head in need.remembering)
                for head in sorted({head for need in needs for head in need.remembering})
            },
            any_greedy=any(need.is_greedy for need in needs),
            any_sampled=not all(need.is_greedy for need in needs),
        )

    @property
    def needs_logits(self) -> bool:
        """Whether anything but a draw and its statistics is asked for, which takes logits in memory."""
        edits = self.masked or self.penalised or self.biases
        return bool(edits or self.top or self.traced or self.truncates)
