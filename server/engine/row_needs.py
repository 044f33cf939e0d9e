"""Row needs: tell the sampler what rows ask for, known on the host without a look at the device. No torch."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from trimtab.guidance.controllers.base import Controller
from trimtab.guidance.rules import Contrast, Expert, Lookahead
from trimtab.server.engine.request import Request, head_facts

if TYPE_CHECKING:
    from trimtab.guidance.heads.bank import HeadBank


@dataclass(frozen=True, slots=True)
class RowNeeds:
    """What a request's rows ask of the sampler, worked out once.

    Heads are columns of the bank. measuring: named heads with a value part, judging: those with a reward
    part, steering: those that carry a weight under a strength, remembering: measuring ones whose value does.
    contrast: of a row with a companion. expert: of one that further models have a part in. log_alpha: see
    Rule. lookahead: of a row whose likeliest tokens are tried. value_weights: of every head, for its value.
    controls: of each controller, what its formula reads of the request; none where nothing steers.
    shares: its β is a share of all that is added, the heads' strength included: 1, or less by a controller.
    """

    measuring: tuple[int, ...]
    judging: tuple[int, ...]
    steering: tuple[int, ...]
    remembering: tuple[int, ...]
    controls: Mapping[type[Controller], tuple[float, ...]]
    has_mask: bool
    has_bias: bool
    has_penalties: bool
    truncates: bool
    is_greedy: bool
    num_top: int
    trace: bool
    contrast: Contrast | None = None
    expert: Expert | None = None
    log_alpha: float = -math.inf
    lookahead: Lookahead | None = None
    value_weights: tuple[float, ...] = ()
    shares: bool = False

    @classmethod
    def of(cls, request: Request, bank: HeadBank) -> RowNeeds:
        sampling, guidance = request.sampling, request.guidance
        named = {bank.offered[name]: weight for name, weight in guidance.heads}
        rule = guidance.rule
        has_strength = guidance.strength and rule.tilts
        steering = tuple(sorted(i for i, w in named.items() if w)) if has_strength else ()
        narrows = rule.log_alpha > -math.inf
        acts = bool(steering or rule.adds_scores or rule.adds_values or narrows)
        return cls(
            measuring=tuple(i for i in sorted(named) if bank.has_value[i]),
            judging=tuple(i for i in sorted(named) if bank.has_reward[i]),
            steering=steering,
            remembering=tuple(i for i in sorted(named) if bank.memory_sizes[i]),
            controls=_controls(request, bank) if acts else {},
            has_mask=request.grammar is not None or sampling.forbids,
            has_bias=bool(sampling.logit_bias),
            has_penalties=sampling.has_penalties,
            truncates=sampling.truncates,
            is_greedy=sampling.temperature == 0,
            num_top=sampling.logprobs or 0,
            trace=guidance.trace,
            contrast=rule if isinstance(rule, Contrast) and rule.companion else None,
            expert=rule if isinstance(rule, Expert) and rule.experts else None,
            log_alpha=rule.log_alpha,
            lookahead=rule if isinstance(rule, Lookahead) else None,
            value_weights=tuple(named.get(i, 0.0) for i in range(len(bank.names))),
            shares=rule.adds_scores or (narrows and not steering),
        )

    @property
    def heads(self) -> set[int]:
        """All that the rows are measured or steered by."""
        return {*self.measuring, *self.judging, *self.steering, *self.remembering}

    @property
    def is_guided(self) -> bool:
        return bool(self.steering or self.lookahead or self.controls or self.contrast or self.expert)

    @property
    def reads_part(self) -> bool:
        """Whether it matters if a token is part of the reasoning."""
        return any(kind.READS_PART for kind in self.controls)


def _controls(request: Request, bank: HeadBank) -> dict[type[Controller], tuple[float, ...]]:
    """Behind the lengths of the prompt and of the longest reply, the controller's own numbers."""
    names = (name if bank.offered.get(name) == column else "" for column, name in enumerate(bank.names))
    heads = zip(names, bank.has_value, bank.value_per_advantage, strict=True)
    facts = head_facts(request.guidance, heads)
    lengths = float(len(request.prompt_token_ids)), float(request.sampling.max_tokens)
    return {type(c): (*lengths, *c.numbers(facts)) for c in request.guidance.controllers}


@dataclass(frozen=True, slots=True)
class BatchNeeds:
    """What rows that are drawn together ask of the sampler. guided … traced: the rows that ask for each.

    guided: by heads, a rule or a controller. contrasted: those with a companion; advised: with experts;
    plausible: with implausible tokens left out; looking: whose likeliest tokens are tried. active: heads that
    any row is steered by. remembering: heads whose value remembers, with the rows that are measured by it.
    controlled: the rows of each controller.
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
    controlled: Mapping[type[Controller], tuple[int, ...]]
    any_greedy: bool
    any_sampled: bool
    contrasted: tuple[int, ...]
    advised: tuple[int, ...]
    plausible: tuple[int, ...]
    looking: tuple[int, ...]
    shares: tuple[int, ...]

    @classmethod
    def of(cls, needs: Sequence[RowNeeds]) -> BatchNeeds:
        rows = list(enumerate(needs))
        return cls(
            guided=tuple(i for i, need in rows if need.is_guided),
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
            controlled={
                kind: tuple(i for i, need in rows if kind in need.controls)
                for kind in dict.fromkeys(kind for need in needs for kind in need.controls)
            },
            any_greedy=any(need.is_greedy for need in needs),
            any_sampled=not all(need.is_greedy for need in needs),
            contrasted=tuple(i for i, need in rows if need.contrast),
            advised=tuple(i for i, need in rows if need.expert),
            plausible=tuple(i for i, need in rows if need.log_alpha > -math.inf),
            looking=tuple(i for i, need in rows if need.lookahead),
            shares=tuple(i for i, need in rows if need.shares and need.is_guided),
        )

    @property
    def reads_part(self) -> bool:
        return any(kind.READS_PART for kind in self.controlled)

    @property
    def needs_logits(self) -> bool:
        """Whether anything but a draw and its statistics is asked for, which takes logits in memory. To solve
        for a strength is to read them several times."""
        edits = self.masked or self.penalised or self.biases or self.narrowed
        has_others = self.contrasted or self.advised
        return bool(edits or has_others or self.top or self.traced or self.truncates or self.controlled)

    @property
    def narrowed(self) -> tuple[int, ...]:
        """Rows whose rule leaves out tokens of the base, which costs them KL."""
        return tuple(sorted({*self.plausible, *self.looking}))

    @property
    def released(self) -> tuple[int, ...]:
        """Those of them that have all tokens again where controllers leave no strength."""
        controlled = {row for rows in self.controlled.values() for row in rows}
        return tuple(row for row in self.narrowed if row in controlled)
