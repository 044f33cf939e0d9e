"""Sampler: turns hidden states into tokens, by the policy's logits, the heads' tilt and the draw."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from trimtab.guidance.heads.bank import HeadBank
from trimtab.guidance.rules.contrast import contrast_advantage, implausible
from trimtab.guidance.rules.expert import POLICY, expert_advantage
from trimtab.guidance.rules.lookahead import lookahead_advantage
from trimtab.kernels.base_statistics import base_statistics
from trimtab.kernels.dispatch import Backend, choose_head_path
from trimtab.kernels.guided_head import guided_head
from trimtab.kernels.guided_logits import GuidedDraw, guided_logits, tilted_logits
from trimtab.kernels.penalties import add_bias, apply_penalties, apply_token_mask
from trimtab.kernels.truncate import Cuts
from trimtab.server.engine.batch import DrawInputs
from trimtab.server.engine.control import Control, Drawing
from trimtab.server.engine.device_copy import float_tensor, index_tensor, to_device
from trimtab.server.engine.model_runner import Hidden
from trimtab.server.engine.policy import ServedPolicy
from trimtab.server.engine.row_needs import BatchNeeds, RowNeeds
from trimtab.server.engine.scheduler import Row
from trimtab.server.engine.step_state import Settings, StepState
from trimtab.server.engine.token_counts import CountedRows, Entries

NUM_BASE_TOP = 3
Probe = Callable[[Sequence[Row], Tensor], Iterator[tuple[Tensor, int]]]
"""See ModelRunner.probe."""


@dataclass(frozen=True, slots=True)
class Drawn:
    """One step's draws as tensors on the device; B drawing rows in order. What was not asked for is None.

    statistics: f32[4 or 5, B]: logprob, base_logprob, kl, flip, and entropy where it was asked for.
    top_ids, top_logprobs: [T, k] of the tilt for `top_rows`; base_top_*: [M, 3] of the base for `traced`.
    values: [B, H] in standard units, before the drawn token. strengths: f32[B] of the heads, where a row is
    controlled.
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
class _Mixed:
    """Rows i64[R] whose advantage is not the heads' alone, their places among the guided ones, and what the
    heads' is multiplied by, f32[R]."""

    rows: Tensor
    places: Tensor
    strength: Tensor


@dataclass(frozen=True, slots=True)
class _Contrasted:
    """Rows that have a companion, the companions' slots i64[R], and gamma f32[R]."""

    mixed: _Mixed
    slots: Tensor
    gamma: Tensor


Side = Mapping[str, tuple[Tensor, Tensor]]
"""Of each model (POLICY for the policy): places i64[N] among some rows, and i64[N] in its own logits."""


@dataclass(frozen=True, slots=True)
class _Advised:
    """Rows that experts have a part in, by which models z⁺ and z⁻ are given, and the weight f32[R]."""

    mixed: _Mixed
    experts: Side
    others: Side
    weight: Tensor


@dataclass(frozen=True, slots=True)
class _Plausible:
    """Rows i64[R] of whose tokens the implausible ones are left out, and how these are told, [R]."""

    rows: Tensor
    log_alpha: Tensor


@dataclass(frozen=True, slots=True)
class _Looking:
    """L rows i64[L] whose likeliest tokens are tried, at most K of each: their places among the guided rows.

    is_tried: bool[L, K]. tried: i64[P], the places in it that are. slots: i64[P], of their rows. weights:
    f32[P, H], of the heads' values. keeps: bool[L, 1], where the other tokens stay.
    """

    rows: Tensor
    places: Tensor
    is_tried: Tensor
    tried: Tensor
    slots: Tensor
    weights: Tensor
    keeps: Tensor


@dataclass(frozen=True, slots=True)
class _Roster:
    """Everything about the drawing rows that stays while the same choices draw together, B rows.

    asked: what both draws are told of the rows, by their arguments' names; cuts: what the one that can
    truncate is told besides. beta: f32[B], what advantages are multiplied by, where any row is guided.
    control: decides strengths, where any row has a controller. shares: i64[R], see RowNeeds. narrowed,
    released: i64[R], see BatchNeeds.
    guided: i64[G], or None when every row is guided. advantage_row: i64[B], each row's place among them.
    masked: i64[R], rows within a grammar.
    bias: see RowBias.gather. remembering: i64[R], the rows of each head whose value remembers, and the slots
    i64[R] where it does.
    """

    needs: BatchNeeds
    settings: Settings
    asked: Mapping[str, Any]
    beta: Tensor | None
    cuts: Mapping[str, Any]
    control: Control | None
    shares: Tensor
    narrowed: Tensor
    released: Tensor
    guided: Tensor | None
    advantage_row: Tensor | None
    masked: Tensor
    bias: tuple[Tensor, Tensor] | None
    penalised: _Penalised | None
    contrasted: _Contrasted | None
    advised: _Advised | None
    plausible: _Plausible | None
    looking: _Looking | None
    top: Tensor
    traced: Tensor
    remembering: Mapping[int, tuple[Tensor, Tensor]]


@dataclass(frozen=True, slots=True)
class _Scores:
    """z [B, V] fp32 of the base, and A [G, V] fp32 of the guided rows with each row's place in it. kept:
    f32[B], log of the base's mass on the tokens that a rule has left; the others are −inf in z. None for all.
    """

    z: Tensor
    advantage: Tensor | None = None
    advantage_row: Tensor | None = None
    kept: Tensor | None = None


class Sampler:
    """strict: every row goes the same way through every product of torch's, whatever the rows beside it ask
    for. probe: for rows that look ahead."""

    def __init__(
        self,
        policy: ServedPolicy,
        bank: HeadBank,
        state: StepState,
        strict: bool = False,
        probe: Probe | None = None,
    ) -> None:
        self._probe = probe
        self._policy, self._bank, self._state, self._is_strict = policy, bank, state, strict
        self._remembering_heads = [head for head, size in enumerate(bank.memory_sizes) if size]
        self._roster: _Roster | None = None
        self._roster_key: tuple[int, ...] = ()

    def draw(
        self,
        hidden: Hidden,
        needs: Sequence[RowNeeds],
        rows: Sequence[Row] = (),
        masks: Sequence[np.ndarray] = (),
        experts: Mapping[str, Tensor] | None = None,
    ) -> Drawn:
        """Draw a token for each row and write it to the step state. needs, rows: without padding; rows are
        needed where any looks ahead. masks: i32[⌈V/32⌉] of each row within a grammar, see
        `apply_token_mask`. experts: see Experts.run."""
        draws, num_rows = hidden.draws, len(hidden.draws.host_slots)
        num_outputs = max(num_rows, draws.first_companion + len(draws.companions) if draws.companions else 0)
        if num_outputs < len(hidden.h):
            logits = None if hidden.logits is None else hidden.logits[:num_outputs]
            hidden = dataclasses.replace(hidden, h=hidden.h[:num_outputs], logits=logits)
        roster = self._current_roster(draws, needs)
        path = choose_head_path(
            num_rows,
            guided=bool(roster.needs.guided),
            device_type=self._state.device.type,
            needs_logits=roster.needs.needs_logits or hidden.logits is not None,
            strict=self._is_strict,
        )
        beta, scores, entries = roster.beta, None, None
        # Before the tokens are tried, whose values are those of a reply that has come this far.
        values = self._values(hidden.h[:num_rows], roster) if roster.needs.measures else None
        if path == "fused":
            draw = self._draw_fused(hidden.h, draws, roster, beta)
        else:
            scores = self._advise(self._score(hidden, roster), experts or {}, roster)
            if roster.needs.masked:
                bitmask = to_device(np.stack(masks), self._state.device)
                apply_token_mask(scores.z, roster.masked, bitmask, self._policy.backend)
            entries = self._penalise(scores.z, draws, roster)
            entropy = _entropy_of_base(scores.z, roster, self._policy.backend)
            whole = scores.z.index_select(0, roster.released) if roster.needs.released else None
            scores = self._look_ahead(self._narrow(scores, roster), rows, roster)
            beta = self._controlled(beta, scores, entropy, values, draws, roster)
            scores = _release(scores, whole, beta, roster)
            draw = _of_whole_base(self._draw(scores, draws, roster, beta), scores, entropy, roster)
        drawn = draw.token.clamp(min=0)
        self._state.last_tokens.index_copy_(0, draws.slots, drawn)
        if roster.contrasted is not None:
            their_drawn = drawn.index_select(0, roster.contrasted.mixed.rows)
            self._state.last_tokens.index_copy_(0, roster.contrasted.slots, their_drawn)
        if roster.penalised is not None and entries is not None:
            self._state.counts.add(
                roster.penalised.counted, entries, drawn.index_select(0, roster.penalised.rows)
            )
        if roster.needs.reads_part:
            self._follow(drawn, draws)
        if roster.needs.guided or roster.needs.narrowed:
            self._state.spent_kl.index_add_(0, draws.slots, draw.kl.double())
        return self._measure(draw, scores, values, beta, roster)

    def judge(self, hidden: Hidden, num_drawn: int, num_judged: int) -> Tensor:
        """Rewards [R, H] of the judged rows, which come after the drawing ones."""
        return self._read(self._bank.rewards, hidden.h[num_drawn : num_drawn + num_judged])

    def measure(self, hidden: Hidden, num_before: int, slots: Sequence[int]) -> Tensor:
        """Values [M, H] of the rows in these slots, which come after others. Nothing is remembered."""
        h = hidden.h[num_before : num_before + len(slots)]
        return self._values_of(h, index_tensor(slots, self._state.device), self._remembering_heads)

    def recall(self, slot: int, h: Tensor, heads: Sequence[int]) -> None:
        """Let the slot's memories of these heads take in further states h [K, d] of its reply. Where the
        engine is strict, one by one, as when they were drawn from."""
        for head in heads:
            memory = self._state.memories[head]
            after = memory[slot][None]
            for some in h.split(1 if self._is_strict else len(h)):
                after = self._bank.remember(head, some[None], after)
            memory[slot].copy_(after[0])

    def _current_roster(self, draws: DrawInputs, needs: Sequence[RowNeeds]) -> _Roster:
        key = (self._state.version, *draws.host_slots)
        if self._roster is None or key != self._roster_key:
            self._roster, self._roster_key = self._new_roster(draws, needs), key
        return self._roster

    def _new_roster(self, draws: DrawInputs, needs: Sequence[RowNeeds]) -> _Roster:
        batch, num_rows = BatchNeeds.of(needs), len(draws.host_slots)
        device = self._state.device
        if self._policy.needs_one_shape(self._is_strict):
            batch = self._strict_needs(batch, num_rows)
        guided = advantage_row = None
        if batch.guided:
            places = [-1] * num_rows
            for place, row in enumerate(batch.guided):
                places[row] = place
            advantage_row = index_tensor(places, device)
            guided = None if len(batch.guided) == num_rows else index_tensor(batch.guided, device)
        settings = self._state.settings(draws.slots)
        shares = index_tensor(batch.shares, device)
        contrasted = self._new_contrasted(draws, batch, needs, settings)
        advised = self._new_advised(batch, needs, settings)
        return _Roster(
            batch,
            settings,
            _asked(settings, batch),
            _strengths(settings, batch, shares),
            {name: settings[name] for name in Cuts.__annotations__} if batch.truncates else {},
            Control(batch.controlled, needs, device) if batch.controlled else None,
            shares,
            index_tensor(batch.narrowed, device),
            index_tensor(batch.released, device),
            guided,
            advantage_row,
            index_tensor(batch.masked, device),
            self._state.biases.gather(draws.host_slots, self._policy.vocab_size) if batch.biases else None,
            self._new_penalised(draws, batch, settings) if batch.penalised else None,
            contrasted,
            advised,
            self._new_plausible(batch, needs) if batch.plausible else None,
            self._new_looking(draws, batch, needs) if batch.looking else None,
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

    def _new_contrasted(
        self, draws: DrawInputs, batch: BatchNeeds, needs: Sequence[RowNeeds], settings: Settings
    ) -> _Contrasted | None:
        if not batch.contrasted:
            return None
        assert list(draws.companion_rows) == list(batch.contrasted)
        device = self._state.device
        return _Contrasted(
            self._new_mixed(batch.contrasted, batch, settings),
            index_tensor(draws.companions, device),
            float_tensor([need.contrast.gamma for need in needs if need.contrast], device),
        )

    def _new_advised(
        self, batch: BatchNeeds, needs: Sequence[RowNeeds], settings: Settings
    ) -> _Advised | None:
        rules = {row: need.expert for row, need in enumerate(needs) if need.expert}
        if not rules:
            return None
        names = dict.fromkeys(name for rule in rules.values() for name in rule.experts)
        asking = {name: [row for row, rule in rules.items() if name in rule.experts] for name in names}
        asking[POLICY] = list(range(len(needs)))
        experts = {row: rule.expert for row, rule in rules.items()}
        others = {row: rule.anti_expert for row, rule in rules.items()}
        return _Advised(
            self._new_mixed(batch.advised, batch, settings),
            self._new_side(experts, asking),
            self._new_side(others, asking),
            float_tensor([rule.weight for rule in rules.values()], self._state.device),
        )

    def _new_side(self, named: Mapping[int, str | None], asking: Mapping[str, Sequence[int]]) -> Side:
        """named: a model for each row, or None. asking: of each model, the rows that it has logits of."""
        rows, device = list(named), self._state.device
        side = {}
        for name, asked in asking.items():
            mine = [row for row in rows if named[row] == name]
            if mine:
                places = index_tensor([rows.index(row) for row in mine], device)
                side[name] = places, index_tensor([asked.index(row) for row in mine], device)
        return side

    def _new_mixed(self, rows: Sequence[int], batch: BatchNeeds, settings: Settings) -> _Mixed:
        device = self._state.device
        index = index_tensor(rows, device)
        places = index_tensor([batch.guided.index(row) for row in rows], device)
        return _Mixed(index, places, settings["strength"].index_select(0, index))

    def _new_plausible(self, batch: BatchNeeds, needs: Sequence[RowNeeds]) -> _Plausible:
        log_alpha = [needs[row].log_alpha for row in batch.plausible]
        device = self._state.device
        return _Plausible(index_tensor(batch.plausible, device), float_tensor(log_alpha, device))

    def _new_looking(self, draws: DrawInputs, batch: BatchNeeds, needs: Sequence[RowNeeds]) -> _Looking:
        rules = [need.lookahead for need in needs if need.lookahead]
        device, most = self._state.device, max(rule.k for rule in rules)
        tried = [row * most + i for row, rule in enumerate(rules) for i in range(rule.k)]
        rows = [row for row, rule in zip(batch.looking, rules, strict=True) for _ in range(rule.k)]
        is_tried = torch.zeros(len(rules) * most, dtype=torch.bool, device=device)
        is_tried.index_fill_(0, index_tensor(tried, device), True)
        weights = float_tensor([weight for row in rows for weight in needs[row].value_weights], device)
        return _Looking(
            index_tensor(batch.looking, device),
            index_tensor([batch.guided.index(row) for row in batch.looking], device),
            is_tried.view(-1, most),
            index_tensor(tried, device),
            index_tensor([draws.host_slots[row] for row in rows], device),
            weights.view(len(rows), -1),
            index_tensor([rule.others == "keep" for rule in rules], device).bool()[:, None],
        )

    def _strict_needs(self, needs: BatchNeeds, num_rows: int) -> BatchNeeds:
        active = tuple(head for head, has in enumerate(self._bank.has_advantage) if has)
        all_rows = tuple(range(num_rows))
        return dataclasses.replace(
            needs,
            guided=all_rows if active else needs.guided,
            active=active,
            any_greedy=True,
            any_sampled=True,
            remembering=dict.fromkeys(needs.remembering, all_rows),
        )

    def _score(self, hidden: Hidden, roster: _Roster) -> _Scores:
        """Of the drawing rows; behind them hidden may hold companions."""
        scores, draws = self._score_all(hidden, roster), hidden.draws
        num_rows, z, contrasted = len(draws.host_slots), scores.z, roster.contrasted
        if contrasted is None:
            return scores
        mine = z.index_select(0, contrasted.mixed.rows)
        others = z[draws.first_companion : draws.first_companion + len(mine)]
        contrast = contrast_advantage(mine, others, contrasted.gamma)
        scores = dataclasses.replace(scores, z=z[:num_rows])
        return _mix(scores, contrast, contrasted.mixed, roster)

    def _advise(self, scores: _Scores, experts: Mapping[str, Tensor], roster: _Roster) -> _Scores:
        """Before anything else changes z, which is also a model's."""
        advised = roster.advised
        if advised is None:
            return scores
        logits = {POLICY: scores.z, **experts}

        def gather(side: Side) -> Tensor:
            gathered = scores.z.new_zeros(len(advised.weight), scores.z.shape[1])
            for name, (places, rows) in side.items():
                gathered.index_copy_(0, places, logits[name].index_select(0, rows))
            return gathered

        own = expert_advantage(gather(advised.experts), gather(advised.others), advised.weight)
        return _mix(scores, own, advised.mixed, roster)

    def _score_all(self, hidden: Hidden, roster: _Roster) -> _Scores:
        h, logits, needs = hidden.h, hidden.logits, roster.needs
        if not needs.guided:
            return _Scores(self._policy.logits(h, logits))
        h_guided, weights = h[: len(hidden.draws.host_slots)], roster.settings["head_weights"]
        if roster.guided is not None:
            h_guided, weights = h.index_select(0, roster.guided), weights.index_select(0, roster.guided)
        column = self._bank.tied_column(h_guided, weights, needs.active)
        if column is None:
            z, tied = self._policy.logits(h, logits), None
        elif logits is None:  # both columns in one reading of lm_head
            # Where a row of logits is no multiple of 16 bytes, four are: a kernel is compiled once more for
            # a pointer that is none.
            padding = h[:0] if self._policy.vocab_size % 4 == 0 else h[:1].expand(-len(h) % 4, -1)
            both = self._policy.project(torch.cat([h, padding, column.to(h.dtype)]))
            z, tied = both[: len(h)], both[len(h) + len(padding) :]
        else:
            z, tied = logits.float(), self._policy.project(column.to(h.dtype))
        lowrank = self._bank.lowrank_advantage(h_guided, weights, needs.active)
        advantage = tied if lowrank is None else lowrank if tied is None else tied + lowrank
        if advantage is None and roster.control is not None:
            advantage = z.new_zeros(len(needs.guided), z.shape[1])
        return _Scores(z, advantage, roster.advantage_row)

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

    def _narrow(self, scores: _Scores, roster: _Roster) -> _Scores:
        """−inf for the tokens that a rule leaves out, in place."""
        plausible = roster.plausible
        if plausible is None:
            return scores
        z = scores.z.index_select(0, plausible.rows)
        narrow = z.masked_fill(implausible(z, plausible.log_alpha), -torch.inf)
        scores.z.index_copy_(0, plausible.rows, narrow)
        kept = scores.z.new_zeros(len(scores.z))
        kept.index_copy_(0, plausible.rows, narrow.logsumexp(-1) - z.logsumexp(-1))
        return dataclasses.replace(scores, kept=kept)

    def _look_ahead(self, scores: _Scores, rows: Sequence[Row], roster: _Roster) -> _Scores:
        """Values of the likeliest tokens as an advantage, and −inf for the others; in place."""
        looking = roster.looking
        if looking is None:
            return scores
        z = scores.z.index_select(0, looking.rows)
        top, ids = z.topk(looking.is_tried.shape[1])
        values = torch.zeros_like(top)
        tried = ids.view(-1).index_select(0, looking.tried)
        values.view(-1).index_copy_(0, looking.tried, self._values_after(tried, rows, looking, roster))
        advantage = scores.advantage
        if advantage is None:
            advantage = z.new_zeros(len(roster.needs.guided), z.shape[1])
        ahead = torch.zeros_like(z).scatter_(1, ids, lookahead_advantage(top, values, looking.is_tried))
        advantage.index_copy_(0, looking.places, ahead)
        narrow = torch.full_like(z, -torch.inf).scatter_(
            1, ids, top.masked_fill(~looking.is_tried, -torch.inf)
        )
        narrow = torch.where(looking.keeps, z, narrow)
        scores.z.index_copy_(0, looking.rows, narrow)
        kept = scores.z.new_zeros(len(scores.z)) if scores.kept is None else scores.kept
        kept.index_copy_(0, looking.rows, narrow.logsumexp(-1) - z.logsumexp(-1))
        return _Scores(scores.z, advantage, roster.advantage_row, kept)

    def _values_after(self, tried: Tensor, rows: Sequence[Row], looking: _Looking, roster: _Roster) -> Tensor:
        """Σ wᵢ Vᵢ f32[P] of the replies with the tried tokens i64[P]."""
        assert self._probe is not None
        parts, start = [], 0
        for h, num in self._probe([row for row in rows if row.lane.num_probes], tried):
            values = self._values_of(h[:num], looking.slots[start : start + num], roster.remembering)
            weights = looking.weights[start : start + num]
            parts.append(torch.where(weights != 0, weights * values, 0.0).sum(-1))
            start += num
        return torch.cat(parts)

    def _values_of(self, h: Tensor, slots: Tensor, remembering: Iterable[int]) -> Tensor:
        """f32[N, H] of replies that h [N, d] is behind, with what is remembered of them in these slots."""
        values = self._read(self._bank.values, h)
        for head in remembering:
            memory = self._state.memories[head].index_select(0, slots)
            values[:, head] = self._step(head, h, memory)[0]
        return values

    def _controlled(
        self,
        beta: Tensor | None,
        scores: _Scores,
        entropy: Tensor | None,
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
        columns = (scores.kept, scores.z, scores.advantage, scores.advantage_row)
        return roster.control.strength(
            Drawing(beta, draws.positions, spent, reasons, values, entropy, *columns), self._policy.backend
        )

    def _follow(self, drawn: Tensor, draws: DrawInputs) -> None:
        """Rows enter and leave their reasoning."""
        tags = self._policy.tags
        if tags is not None:
            reasons = self._state.reasons.index_select(0, draws.slots)
            after = (drawn == tags.opening) | (reasons & (drawn != tags.closing))
            self._state.reasons.index_copy_(0, draws.slots, after)

    def _draw(self, scores: _Scores, draws: DrawInputs, roster: _Roster, beta: Tensor | None) -> GuidedDraw:
        return guided_logits(
            scores.z,
            positions=draws.positions,
            advantage=scores.advantage,
            advantage_row=scores.advantage_row,
            beta=beta,
            want_entropy=bool(roster.needs.traced),
            backend=self._policy.backend,
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
            top_logprobs, top_ids = _top_of_tilt(scores, beta, roster, self._policy.backend)
        if needs.traced:
            assert scores is not None
            base_logprobs, base_ids = _top(scores.z.index_select(0, roster.traced), NUM_BASE_TOP)
            if scores.kept is not None:
                base_logprobs = base_logprobs + scores.kept.index_select(0, roster.traced)[:, None]
        return Drawn(
            draw.token,
            torch.stack(fields),
            values,
            _of_heads(beta, roster) if needs.controlled else None,
            needs.top,
            top_ids,
            top_logprobs,
            needs.traced,
            base_ids,
            base_logprobs,
        )

    def _read(self, scalars: Callable[[Tensor], Tensor], h: Tensor) -> Tensor:
        """Values or rewards at h [B, d]; under strict row by row, since what a product gives may depend on a
        row's place in it."""
        return torch.cat([scalars(some) for some in h.split(1 if self._is_strict else len(h))])

    def _values(self, h: Tensor, roster: _Roster) -> Tensor:
        values = self._read(self._bank.values, h)
        for head, (rows, slots) in roster.remembering.items():
            memory = self._state.memories[head]
            value, after = self._step(head, h.index_select(0, rows), memory.index_select(0, slots))
            memory.index_copy_(0, slots, after)
            values.select(1, head).index_copy_(0, rows, value)
        return values

    def _step(self, head: int, h: Tensor, memory: Tensor) -> tuple[Tensor, Tensor]:
        """HeadBank.step; under strict row by row, see `_read`."""
        if not self._is_strict:
            return self._bank.step(head, h, memory)
        steps = [self._bank.step(head, *row) for row in zip(h.split(1), memory.split(1), strict=True)]
        values, memories = zip(*steps, strict=True)
        return torch.cat(values), torch.cat(memories)


def _top_of_tilt(
    scores: _Scores, beta: Tensor | None, roster: _Roster, backend: Backend | None
) -> tuple[Tensor, Tensor]:
    tilted = scores.z.index_select(0, roster.top)
    if scores.advantage is not None and scores.advantage_row is not None:
        assert beta is not None
        advantage_row, beta = (x.index_select(0, roster.top) for x in (scores.advantage_row, beta))
        tilted = tilted_logits(tilted, scores.advantage, advantage_row, beta, backend)
    return _top(tilted, roster.needs.num_top)


def _mix(scores: _Scores, own: Tensor, mixed: _Mixed, roster: _Roster) -> _Scores:
    """A rule's own advantage f32[R, V], and what the heads add at their strength; in place."""
    advantage = scores.advantage
    if advantage is None:
        advantage = own.new_zeros(len(roster.needs.guided), own.shape[1])
    heads = advantage.index_select(0, mixed.places) * mixed.strength[:, None]
    advantage.index_copy_(0, mixed.places, own.add_(heads))
    return dataclasses.replace(scores, advantage=advantage, advantage_row=roster.advantage_row)


def _strengths(settings: Settings, needs: BatchNeeds, shares: Tensor) -> Tensor | None:
    return settings["strength"].index_fill(0, shares, 1.0) if needs.guided else None


def _of_heads(beta: Tensor | None, roster: _Roster) -> Tensor | None:
    """The strengths f32[B] of the heads, of which some betas are shares."""
    if beta is None:
        return None
    strengths = beta * roster.settings["strength"]
    return beta.index_copy(0, roster.shares, strengths.index_select(0, roster.shares))


def _entropy_of_base(z: Tensor, roster: _Roster, backend: Backend | None) -> Tensor | None:
    """f32[B] of all tokens, where it is asked for and the draw does not measure it in time, or not of all."""
    is_read = roster.control is not None and roster.control.reads_entropy
    if not is_read and not (roster.needs.traced and roster.needs.narrowed):
        return None
    return base_statistics(z, want_entropy=True, backend=backend).entropy


def _release(scores: _Scores, whole: Tensor | None, beta: Tensor | None, roster: _Roster) -> _Scores:
    """All tokens again for the rows whose controllers have left no strength, in place. whole: f32[R, V]."""
    rows = roster.released
    if whole is None:
        return scores
    assert beta is not None
    assert scores.kept is not None
    is_off = beta.index_select(0, rows) == 0
    z, kept = scores.z.index_select(0, rows), scores.kept.index_select(0, rows)
    scores.z.index_copy_(0, rows, torch.where(is_off[:, None], whole, z))
    scores.kept.index_copy_(0, rows, kept.masked_fill(is_off, 0.0))
    return scores


def _asked(settings: Settings, needs: BatchNeeds) -> dict[str, Any]:
    return {
        **{name: settings[name] for name in ("seeds", "choices", "temperature")},
        "any_greedy": needs.any_greedy,
        "any_sampled": needs.any_sampled,
    }


def _of_whole_base(draw: GuidedDraw, scores: _Scores, entropy: Tensor | None, roster: _Roster) -> GuidedDraw:
    """What was measured against the tokens that a rule has left, against all of the base's."""
    kept, rows = scores.kept, roster.narrowed
    if kept is None:
        return draw
    if draw.entropy is not None and entropy is not None:
        whole = draw.entropy.index_copy(0, rows, entropy.index_select(0, rows))
        draw = dataclasses.replace(draw, entropy=whole)
    return dataclasses.replace(draw, base_logprob=draw.base_logprob + kept, kl=draw.kl - kept)


def _top(logits: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Log-probabilities and ids [R, k] of each row's likeliest tokens."""
    logprobs, ids = logits.log_softmax(-1).topk(min(k, logits.shape[1]))
    return logprobs, ids
