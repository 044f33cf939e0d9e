"""Batch: packs a step's rows on static buffers, padded where its shape must be one of a few."""

from __future__ import annotations

import bisect
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from torch import Tensor

from trimtab.server.engine.block_manager import NULL_BLOCK
from trimtab.server.engine.config import EngineConfig
from trimtab.server.engine.device_copy import StaticInputs
from trimtab.server.engine.scheduler import Purpose, Row, Step
from trimtab.server.engine.step_state import DRAWN, StepState

MAX_SECTIONS = 8  # of one entry per token at most: four of TokenInputs, two of outputs, two of DrawInputs


@dataclass(frozen=True, slots=True)
class TokenInputs:
    """Of each token, [T] views of the static buffer: its lane's slot and position, its id (DRAWN for one
    that only the device knows), and where its key and value are in the flattened cache.

    block_tables: what the slots are rows of, if not of the step state's.
    """

    slots: Tensor
    positions: Tensor
    ids: Tensor
    cache_slots: Tensor
    block_tables: Tensor | None = None


@dataclass(frozen=True, slots=True)
class DrawInputs:
    """Of each drawing row, [B] views: its slot, and the drawn token's position.

    host_slots, host_positions: the same on the host.
    companions: slots of the companion lanes, companion_rows: the drawing row that each belongs to;
    first_companion: where the outputs of the companions begin.
    """

    slots: Tensor
    positions: Tensor
    host_slots: Sequence[int]
    host_positions: Sequence[int]
    companions: Sequence[int] = ()
    companion_rows: Sequence[int] = ()
    first_companion: int = 0


@dataclass(frozen=True, slots=True)
class RowSpans:
    """The rows as attention sees them, padding included; row r has num_tokens[r] queries and ends[r] keys."""

    slots: Sequence[int]
    num_tokens: Sequence[int]
    ends: Sequence[int]

    @property
    def are_single(self) -> bool:
        return len(self.num_tokens) == sum(self.num_tokens)


@dataclass(frozen=True, slots=True)
class Batch:
    """outputs: i64[K], the tokens whose h is asked for: those of drawing, of judged, of measured rows, of
    companions, then padding; last the num_read tokens that are only read and need no logits."""

    tokens: TokenInputs
    rows: RowSpans
    outputs: Tensor
    num_read: int
    draws: DrawInputs


def decode_buckets(max_num_seqs: int) -> tuple[int, ...]:
    """Batch sizes that decode steps are padded to: 1, 2, 4, then multiples of 8."""
    sizes = [1, 2, 4, *range(8, max_num_seqs, 8), max_num_seqs]
    return tuple(sorted({size for size in sizes if size <= max_num_seqs}))


@dataclass(slots=True)
class _Lists:
    """The batch under construction, on the host. ids, blocks: of each token; slots, starts, num_tokens: of
    each row."""

    ids: list[int] = field(default_factory=list)
    blocks: list[int] = field(default_factory=list)
    slots: list[int] = field(default_factory=list)
    starts: list[int] = field(default_factory=list)
    num_tokens: list[int] = field(default_factory=list)
    ends: list[int] = field(default_factory=list)
    draws: list[int] = field(default_factory=list)
    judged: list[int] = field(default_factory=list)
    measured: list[int] = field(default_factory=list)
    companion_outputs: list[int] = field(default_factory=list)
    companions: list[int] = field(default_factory=list)
    companion_rows: list[int] = field(default_factory=list)
    read: list[int] = field(default_factory=list)
    draw_slots: list[int] = field(default_factory=list)
    draw_positions: list[int] = field(default_factory=list)
    num_padding: int = 0


class BatchBuilder:
    """Lays out rows on the host and copies them to the device at once.

    Under `padding: buckets` a step of single tokens is padded to one of `buckets`. With `has_one_shape` every
    step is padded to the whole token budget, with one output more than there can be rows, so that every
    matrix product always has the same shape.
    """

    def __init__(self, state: StepState, config: EngineConfig, has_one_shape: bool = False) -> None:
        self._state, self._has_one_shape = state, has_one_shape
        self.buckets = decode_buckets(config.max_num_seqs) if config.padding == "buckets" else ()
        self._budget, self._max_outputs = config.token_budget, config.max_num_seqs + 1
        self._inputs = StaticInputs(MAX_SECTIONS * (self._budget + 2), state.device)

    def build(self, step: Step) -> Batch:
        are_plain = [row.is_plain for row in step.rows]
        num_plain = are_plain.index(False) if False in are_plain else len(are_plain)
        lists = _plain(step.rows[:num_plain])
        for row in step.rows[num_plain:]:
            self._add(lists, row)
        outputs = lists.draws + lists.judged + lists.measured + lists.companion_outputs
        if self._has_one_shape:
            self._pad_to_one_shape(lists, outputs)
        else:
            self._pad_to_bucket(lists)
        outputs.extend(lists.read)
        others = (outputs, lists.draw_slots, lists.draw_positions)
        views = self._inputs.fill([*self._of_tokens(lists), *(np.array(x, dtype=np.int64) for x in others)])
        return Batch(
            TokenInputs(*views[:4]),
            RowSpans(lists.slots, lists.num_tokens, lists.ends),
            views[4],
            len(lists.read),
            DrawInputs(
                views[5],
                views[6],
                lists.draw_slots,
                lists.draw_positions,
                lists.companions,
                lists.companion_rows,
                len(lists.draws) + len(lists.judged) + len(lists.measured),
            ),
        )

    def decode_inputs(self, size: int) -> TokenInputs:
        """Where `build` puts the tokens of a decode step of this many rows: always the same addresses."""
        return TokenInputs(*self._inputs.views([size] * 4))

    def fill_padding(self, size: int) -> None:
        """Make the next decode step one of this many padding rows."""
        lists = _Lists()
        self._add_padding(lists, [1] * size, 1)
        self._inputs.fill(self._of_tokens(lists))

    def _of_tokens(self, lists: _Lists) -> tuple[np.ndarray, ...]:
        """The sections of TokenInputs."""
        slots, starts, num_tokens, ids, blocks = (
            np.array(x, dtype=np.int64)
            for x in (lists.slots, lists.starts, lists.num_tokens, lists.ids, lists.blocks)
        )
        positions = starts
        if len(ids) > len(starts):
            firsts = np.cumsum(num_tokens) - num_tokens
            slots, positions = np.repeat(slots, num_tokens), np.repeat(starts - firsts, num_tokens)
            positions = positions + np.arange(len(ids))
            positions[len(ids) - lists.num_padding :] = 0
        size = self._state.block_size
        return slots, positions, ids, blocks * size + positions % size

    def _add(self, lists: _Lists, row: Row) -> None:
        lane, start, num_tokens = row.lane, row.start, row.num_tokens
        first, end = len(lists.ids), start + num_tokens
        assert lane.slot is not None
        lists.slots.append(lane.slot)
        lists.starts.append(start)
        lists.num_tokens.append(num_tokens)
        lists.ends.append(end)
        size = self._state.block_size
        if num_tokens == 1:
            lists.ids.append(lane.tokens[start] if start < len(lane.tokens) else DRAWN)
            lists.blocks.append(lane.blocks[start // size])
        else:
            known = [*lane.tokens[start:end], *row.drafts]
            lists.ids.extend(known)
            lists.ids.extend([DRAWN] * (num_tokens - len(known)))
            lists.blocks.extend([lane.blocks[at // size] for at in range(start, end)])
        if row.purpose is Purpose.DRAW and lane.is_companion:  # behind the row of the lane that is drawn from
            lists.companion_outputs.extend([first + at for at in row.output_positions])
            lists.companions.append(lane.slot)
            lists.companion_rows.append(len(lists.draw_slots) - 1)
        elif row.purpose is Purpose.DRAW:
            if row.output_positions:
                lists.draws.extend([first + at for at in row.output_positions])
                lists.draw_slots.extend([lane.slot] * len(row.output_positions))
                lists.draw_positions.extend([start + at + 1 for at in row.output_positions])
        elif row.output_positions:
            others = {Purpose.REWARD: lists.judged, Purpose.MEASURE: lists.measured}
            others.get(row.purpose, lists.read).extend([first + at for at in row.output_positions])

    def _add_padding(self, lists: _Lists, num_tokens: Sequence[int], end: int) -> None:
        """Rows of padding: their token is at position 0 of a slot that no lane has, in the null block."""
        lists.num_padding = total = sum(num_tokens)
        lists.ids.extend([0] * total)
        lists.blocks.extend([NULL_BLOCK] * total)
        lists.slots.extend([self._state.padding_slot] * len(num_tokens))
        lists.starts.extend([0] * len(num_tokens))
        lists.num_tokens.extend(num_tokens)
        lists.ends.extend([end] * len(num_tokens))

    def _pad_to_bucket(self, lists: _Lists) -> None:
        num_rows = len(lists.num_tokens)
        if self.buckets and num_rows == len(lists.ids) and num_rows <= self.buckets[-1]:
            size = self.buckets[bisect.bisect_left(self.buckets, num_rows)]
            self._add_padding(lists, [1] * (size - num_rows), 1)

    def _pad_to_one_shape(self, lists: _Lists, outputs: list[int]) -> None:
        self._add_padding(lists, [self._budget + 1 - len(lists.ids)], 0)
        outputs.extend([self._budget] * (self._max_outputs - len(outputs)))
        num_missing = self._max_outputs - len(lists.draw_slots)
        lists.draw_slots.extend([self._state.padding_slot] * num_missing)
        lists.draw_positions.extend([0] * num_missing)


def _plain(rows: Sequence[Row]) -> _Lists:
    """Rows that are plain (see Row): by columns, since they may be hundreds."""
    lanes, starts = [row.lane for row in rows], [row.start for row in rows]
    slots = [lane.slot for lane in lanes if lane.slot is not None]
    ends = [start + 1 for start in starts]
    assert len(slots) == len(lanes)
    return _Lists(
        ids=[lane.tokens[-1] if not lane.num_inflight else DRAWN for lane in lanes],
        blocks=[lane.blocks[-1] for lane in lanes],
        slots=slots,
        starts=starts,
        num_tokens=[1] * len(rows),
        ends=ends,
        draws=list(range(len(rows))),
        draw_slots=slots.copy(),
        draw_positions=ends.copy(),
    )
