"""Sampler: turns hidden states into tokens, by the policy's logits, the heads' tilt and the draw."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from trimtab.guidance.heads.bank import HeadBank
from trimtab.kernels.dispatch import choose_head_path
from trimtab.kernels.guided_head import guided_head
from trimtab.kernels.guided_logits import GuidedDraw, guided_logits, tilted_logits
from trimtab.kernels.penalties import add_bias, apply_penalties, apply_token_mask
from trimtab.kernels.truncate import Cuts
from trimtab.kernels.wide_product import wide_product
from trimtab.server.engine.batch import DrawInputs
from trimtab.server.engine.compiled_decode import CompiledDecode
from trimtab.server.engine.control import Control, Drawing
from trimtab.server.engine.device_copy import index_tensor, to_device
from trimtab.server.engine.model_runner import Hidden
from trimtab.server.engine.policy import ServedPolicy
from trimtab.server.engine.row_needs import BatchNeeds, RowNeeds
from trimtab.server.engine.step_state import Settings, StepState
from trimtab.server.engine.token_counts import CountedRows, Entries

NUM_BASE_TOP = 3


@dataclass(frozen=True, slots=True)
class Drawn:
    """One step's draws as tensors on the device; B drawing rows in order. What was not asked for is None.

    statistics: f32[4 or 5, B]: logprob, base_logprob, kl, flip, and entropy where it was asked for.
    top_ids, top_logprobs: [T, k] of the tilt for `top_rows`; base_top_*: [M, 3] of the base for `traced`.
    values: [B, H] in standard units, before the drawn token. strengths: f32[B], where a row is controlled.
    """

    tokens: Tensor
    statistics: Tensor
    values: Tensor | None
    strengths: Tensor | None
    top_rows: Sequence[int]
    top_ids: Tensor | None
    top_logprobs: Tensor | None
    traced: Sequence[int]
    base_top_ids: Tensor | None
    base_top_logprobs: Tensor | None


@dataclass(frozen=True, slots=True)
class _Penalised:
    """Rows i64[R] with penalties, where their counts are, and the penalties [R] as `apply_penalties` takes
    them."""

    rows: Tensor
    counted: CountedRows
    penalties: Mapping[str, Tensor]


@dataclass(frozen=True, slots=True)
class _Roster:
    """Everything about the drawing rows that stays while the same choices draw together, B rows.

    asked: what both draws are told of the rows, by their arguments' names; cuts: what the one that can
    truncate is told besides. control: decides strengths, where any row has a controller.
    guided: i64[G], or None when every row is guided. advantage_row: i64[B], each row's place among them.
    masked: i64[R], rows within a grammar.
    bias: see RowBias.gather. remembering: i64[R], the rows of each head whose value remembers, and the slots
    i64[R] where it does.
    """

    needs: BatchNeeds
    settings: Settings
    asked: Mapping[str, Any]
    cuts: Mapping[str, Any]
    control: Control | None
    guided: Tensor | None
    advantage_row: Tensor | None
    masked: Tensor
    bias: tuple[Tensor, Tensor] | None
    penalised: _Penalised | None
    top: Tensor
    traced: Tensor
    remembering: Mapping[int, tuple[Tensor, Tensor]]


@dataclass(frozen=True, slots=True)
class _Scores:
    """z [B, V] fp32 of the base, and A [G, V] fp32 of the guided rows with each row's place in it."""

    z: Tensor
    advantage: Tensor | None = None
    advantage_row: Tensor | None = None


class Sampler:
    """strict: every row goes the same way through every product, whatever the rows beside it ask for.
    compiled: what draws, where the decode step is compiled."""

    def __init__(
        self,
        policy: ServedPolicy,
        bank: HeadBank,
        state: StepState,
        strict: bool = False,
        compiled: CompiledDecode | None = None,
    ) -> None:
        self._policy, self._bank, self._state, self._is_strict = policy, bank, state, strict
        self._guided_logits = guided_logits if compiled is None else compiled.draw
        self._roster: _Roster | None = None
        self._roster_key: tuple[int, ...] = ()

    def draw(self, hidden: Hidden, needs: Sequence[RowNeeds], masks: Sequence[np.ndarray] = ()) -> Drawn:
        """Draw a token for each row and write it to the step state. needs: of the rows without padding.
        masks: i32[⌈V/32⌉] of each row within a grammar, see `apply_token_mask`."""
        draws, num_rows = hidden.draws, len(hidden.draws.host_slots)
        if num_rows < len(hidden.h):
            logits = None if hidden.logits is None else hidden.logits[:num_rows]
            hidden = dataclasses.replace(hidden, h=hidden.h[:num_rows], logits=logits)
        roster = self._current_roster(draws, needs)
        path = choose_head_path(
            num_rows,
            guided=bool(roster.needs.guided),
            device_type=self._state.device.type,
            needs_logits=roster.needs.needs_logits or hidden.logits is not None,
            strict=self._is_strict,
        )
        values = self._values(hidden.h, roster) if roster.needs.measures else None
        beta = roster.settings["strength"] if roster.needs.guided else None
        scores = entries = None
        if path == "fused":
            draw = self._draw_fused(hidden.h, draws, roster, beta)
        else:
            scores = self._score(hidden, roster)
            if roster.needs.masked:
                bitmask = to_device(np.stack(masks), self._state.device)
                apply_token_mask(scores.z, roster.masked, bitmask)
            entries = self._penalise(scores.z, draws, roster)
            beta = self._controlled(beta, scores, values, draws, roster)
            draw = self._draw(scores, draws, roster, beta)
        drawn = draw.token.clamp(min=0)
        self._state.last_tokens.index_copy_(0, draws.slots, drawn)
        if roster.penalised is not None and entries is not None:
            self._state.counts.add(
                roster.penalised.counted, entries, drawn.index_select(0, roster.penalised.rows)
            )
        if roster.needs.reads_part:
            self._follow(drawn, draws)
        if roster.needs.guided:
            self._state.spent_kl.index_add_(0, draws.slots, draw.kl.double())
        return self._measure(draw, scores, values, beta, roster)

    def judge(self, hidden: Hidden, num_drawn: int, num_judged: int) -> Tensor:
        """Rewards [R, H] of the judged rows, which come after the drawing ones."""
        if self._is_strict:
            return self._bank.rewards(hidden.h)[num_drawn : num_drawn + num_judged]
        return self._bank.rewards(hidden.h[num_drawn : num_drawn + num_judged])

    def recall(self, slot: int, h: Tensor, heads: Sequence[int]) -> None:
        """Let the slot's memories of these heads take in further states h [K, d] of its reply. Where the
        engine is strict, one by one in a step's number of rows, as when they were drawn from."""
        num_rows, size = (self._state.num_slots, 1) if self._is_strict else (1, len(h))
        for head in heads:
            memory = self._state.memories[head]
            after = memory[slot].expand(num_rows, -1)
            for some in h.split(size):
                after = self._bank.remember(head, some.expand(num_rows, -1, -1), after)
            memory[slot].copy_(after[0])

    def _current_roster(self, draws: DrawInputs, needs: Sequence[RowNeeds]) -> _Roster:
        key = (self._state.version, *draws.host_slots)
        if self._roster is None or key != self._roster_key:
            self._roster, self._roster_key = self._new_roster(draws, needs), key
        return self._roster

    def _new_roster(self, draws: DrawInputs, needs: Sequence[RowNeeds]) -> _Roster:
        batch, num_rows = BatchNeeds.of(needs), len(draws.host_slots)
        device = self._state.device
        if self._is_strict:
            batch = self._strict_needs(batch, num_rows)
        guided = advantage_row = None
        if batch.guided:
            places = [-1] * num_rows
            for place, row in enumerate(batch.guided):
                places[row] = place
            advantage_row = index_tensor(places, device)
            guided = None if len(batch.guided) == num_rows else index_tensor(batch.guided, device)
        settings = self._state.settings(draws.slots)
        return _Roster(
            batch,
            settings,
            _asked(settings, batch),
            {name: settings[name] for name in Cuts.__annotations__} if batch.truncates else {},
            Control(batch.controlled, needs, device) if batch.controlled else None,
            guided,
            advantage_row,
            index_tensor(batch.masked, device),
            self._state.biases.gather(draws.host_slots, self._policy.vocab_size) if batch.biases else None,
            self._new_penalised(draws, batch, settings) if batch.penalised else None,
            index_tensor(batch.top, device),
            index_tensor(batch.traced, device),
            self._new_remembering(draws, batch),
        )

    def _new_remembering(self, draws: DrawInputs, needs: BatchNeeds) -> dict[int, tuple[Tensor, Tensor]]:
        rows = {head: index_tensor(some, self._state.device) for head, some in needs.remembering.items()}
        return {head: (some, draws.slots.index_select(0, some)) for head, some in rows.items()}

    def _new_penalised(self, draws: DrawInputs, needs: BatchNeeds, settings: Settings) -> _Penalised:
        rows = index_tensor(needs.penalised, self._state.device)
        counted = self._state.counts.locate([draws.host_slots[row] for row in needs.penalised])
        names = ("repetition", "presence", "frequency")
        penalties = {name: settings[f"{name}_penalty"].index_select(0, rows) for name in names}
        return _Penalised(rows, counted, penalties)

    def _strict_needs(self, needs: BatchNeeds, num_rows: int) -> BatchNeeds:
        active = tuple(head for head, has in enumerate(self._bank.has_advantage) if has)
        all_rows = tuple(range(num_rows))
        return dataclasses.replace(
            needs,
            guided=all_rows if active else (),
            active=active,
            any_greedy=True,
            any_sampled=True,
            remembering=dict.fromkeys(needs.remembering, all_rows),
        )

    def _score(self, hidden: Hidden, roster: _Roster) -> _Scores:
        h, logits, needs = hidden.h, hidden.logits, roster.needs
        if not needs.guided:
            return _Scores(self._policy_logits(h, logits))
        h_guided, weights = h, roster.settings["head_weights"]
        if roster.guided is not None:
            h_guided, weights = h.index_select(0, roster.guided), weights.index_select(0, roster.guided)
        column = self._bank.tied_column(h_guided, weights, needs.active)
        if column is None:
            z, tied = self._policy_logits(h, logits), None
        elif logits is None:  # both columns in one reading of lm_head
            # Where a row of logits is no multiple of 16 bytes, four are: a kernel is compiled once more for
            # a pointer that is none.
            padding = h[:0] if self._policy.vocab_size % 4 == 0 else h[:1].expand(-len(h) % 4, -1)
            both = self._project(torch.cat([h, padding, column.to(h.dtype)]))
            z, tied = both[: len(h)], both[len(h) + len(padding) :]
        else:
            z, tied = logits.float(), self._project(column.to(h.dtype))
        lowrank = self._bank.lowrank_advantage(h_guided, weights, needs.active)
        advantage = tied if lowrank is None else lowrank if tied is None else tied + lowrank
        return _Scores(z, advantage, roster.advantage_row)

    def _policy_logits(self, h: Tensor, logits: Tensor | None) -> Tensor:
        return self._project(h) if logits is None else logits.float()

    def _project(self, columns: Tensor) -> Tensor:
        """columns [N, d] times the output embedding, f32[N, V]."""
        if columns.is_cuda:
            return wide_product(columns, self._policy.lm_head)
        return self._policy.project(columns).float()

    def _penalise(self, z: Tensor, draws: DrawInputs, roster: _Roster) -> Entries | None:
        """Bias, then penalties, in place. Returns what the penalised rows' histories hold."""
        if roster.bias is not None:
            add_bias(z, *roster.bias)
        penalised = roster.penalised
        if penalised is None:
            return None
        entries = self._state.counts.gather(
            penalised.counted,
            draws.positions.index_select(0, penalised.rows),
            [draws.host_positions[row] for row in roster.needs.penalised],
        )
        apply_penalties(
            z,
            rows=penalised.rows,
            tokens=entries.tokens,
            counts=entries.counts,
            **penalised.penalties,
        )
        return entries

    def _controlled(
        self,
        beta: Tensor | None,
        scores: _Scores,
        values: Tensor | None,
        draws: DrawInputs,
        roster: _Roster,
    ) -> Tensor | None:
        """The strengths that the rows' controllers leave of those that were asked for."""
        if roster.control is None:
            return beta
        assert beta is not None
        assert scores.advantage is not None
        assert scores.advantage_row is not None
        spent, reasons = (x.index_select(0, draws.slots) for x in (self._state.spent_kl, self._state.reasons))
        columns = (scores.z, scores.advantage, scores.advantage_row)
        return roster.control.strength(Drawing(beta, draws.positions, spent, reasons, values, *columns))

    def _follow(self, drawn: Tensor, draws: DrawInputs) -> None:
        """Rows enter and leave their reasoning."""
        tags = self._policy.tags
        if tags is not None:
            reasons = self._state.reasons.index_select(0, draws.slots)
            after = (drawn == tags.opening) | (reasons & (drawn != tags.closing))
            self._state.reasons.index_copy_(0, draws.slots, after)

    def _draw(self, scores: _Scores, draws: DrawInputs, roster: _Roster, beta: Tensor | None) -> GuidedDraw:
        return self._guided_logits(
            scores.z,
            positions=draws.positions,
            advantage=scores.advantage,
            advantage_row=scores.advantage_row,
            beta=beta,
            want_entropy=bool(roster.needs.traced),
            **roster.asked,
            **roster.cuts,
        )

    def _draw_fused(self, h: Tensor, draws: DrawInputs, roster: _Roster, beta: Tensor | None) -> GuidedDraw:
        """The same without logits in memory. Rows without guidance have zero columns."""
        weights, needs = roster.settings["head_weights"], roster.needs
        column = lowrank = None
        if needs.guided:
            column = self._bank.tied_column(h, weights, needs.active)
            lowrank = self._bank.lowrank_factors(h, weights, needs.active)
        return guided_head(
            h,
            self._policy.lm_head,
            positions=draws.positions,
            column=column,
            lowrank=lowrank,
            beta=beta,
            **roster.asked,
        )

    def _measure(
        self,
        draw: GuidedDraw,
        scores: _Scores | None,
        values: Tensor | None,
        beta: Tensor | None,
        roster: _Roster,
    ) -> Drawn:
        needs = roster.needs
        fields = [draw.logprob, draw.base_logprob, draw.kl, draw.flip]
        if draw.entropy is not None:
            fields.append(draw.entropy)
        top_logprobs = top_ids = base_logprobs = base_ids = None
        if needs.top:
            assert scores is not None
            top_logprobs, top_ids = _top_of_tilt(scores, beta, roster)
        if needs.traced:
            assert scores is not None
            base_logprobs, base_ids = _top(scores.z.index_select(0, roster.traced), NUM_BASE_TOP)
        return Drawn(
            draw.token,
            torch.stack(fields),
            values,
            beta if needs.controlled else None,
            needs.top,
            top_ids,
            top_logprobs,
            needs.traced,
            base_ids,
            base_logprobs,
        )

    def _values(self, h: Tensor, roster: _Roster) -> Tensor:
        values = self._bank.values(h)
        for head, (rows, slots) in roster.remembering.items():
            memory = self._state.memories[head]
            value, after = self._bank.step(head, h.index_select(0, rows), memory.index_select(0, slots))
            memory.index_copy_(0, slots, after)
            values.select(1, head).index_copy_(0, rows, value)
        return values


def _top_of_tilt(scores: _Scores, beta: Tensor | None, roster: _Roster) -> tuple[Tensor, Tensor]:
    tilted = scores.z.index_select(0, roster.top)
    if scores.advantage is not None and scores.advantage_row is not None:
        assert beta is not None
        advantage_row, beta = (x.index_select(0, roster.top) for x in (scores.advantage_row, beta))
        tilted = tilted_logits(tilted, scores.advantage, advantage_row, beta)
    return _top(tilted, roster.needs.num_top)


def _asked(settings: Settings, needs: BatchNeeds) -> dict[str, Any]:
    return {
        **{name: settings[name] for name in ("seeds", "choices", "temperature")},
        "any_greedy": needs.any_greedy,
        "any_sampled": needs.any_sampled,
    }


def _top(logits: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Log-probabilities and ids [R, k] of each row's likeliest tokens."""
    logprobs, ids = logits.log_softmax(-1).topk(min(k, logits.shape[1]))
    return logprobs, ids
