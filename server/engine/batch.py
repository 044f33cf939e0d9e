"""Packs a step's rows into one batch on static buffers, padded where its shape must be one of a few."""

from __future__ import annotations

import bisect
from collections.abc import Sequence
from dataclasses import dataclass, field

from torch import Tensor

from trimtab.server.engine.block_manager import NULL_BLOCK
from trimtab.server.engine.config import EngineConfig
from trimtab.server.engine.device_copy import StaticInputs
from trimtab.server.engine.scheduler import Purpose, Row, Step
from trimtab.server.engine.step_state import StepState

MAX_SECTIONS = 9  # of one entry per token at most: four of TokenInputs, two of outputs, three of DrawInputs


@dataclass(frozen=True, slots=True)
class TokenInputs:
    """Of each token, [T] views of the static buffer: its lane's slot and position, and where its id and its
    key and value are, in the flattened token table and cache."""

    slots: Tensor
    positions: Tensor
    token_places: Tensor
    cache_slots: Tensor


@dataclass(frozen=True, slots=True)
class DrawInputs:
    """Of each drawing row, [B] views: its slot, and the drawn token's position and place in the token table.

    host_slots, host_positions: the same on the host.
    """

    slots: Tensor
    positions: Tensor
    places: Tensor
    host_slots: Sequence[int]
    host_positions: Sequence[int]


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
    """outputs: i64[K], the tokens whose h is asked for: those of drawing rows, then those of judged rows,
    then padding; last the num_read tokens that are only read and need no logits."""

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
    """The batch under construction, on the host."""

    slots: list[int] = field(default_factory=list)
    positions: list[int] = field(default_factory=list)
    token_places: list[int] = field(default_factory=list)
    cache_slots: list[int] = field(default_factory=list)
    row_slots: list[int] = field(default_factory=list)
    num_tokens: list[int] = field(default_factory=list)
    ends: list[int] = field(default_factory=list)
    draws: list[int] = field(default_factory=list)
    judged: list[int] = field(default_factory=list)
    read: list[int] = field(default_factory=list)
    draw_slots: list[int] = field(default_factory=list)
    draw_positions: list[int] = field(default_factory=list)


class BatchBuilder:
    """Lays out rows on the host and copies them to the device at once.

    Under `padding: buckets` a step of single tokens is padded to one of `buckets`; under `strict` every step
    is padded to the whole token budget, with one output more than there can be rows, so that every matrix
    product always has the same shape.
    """

    def __init__(self, state: StepState, config: EngineConfig) -> None:
        self._state, self._is_strict = state, config.strict
        self.buckets = decode_buckets(config.max_num_seqs) if config.padding == "buckets" else ()
        self._budget, self._max_outputs = config.token_budget, config.max_num_seqs + 1
        self._inputs = StaticInputs(MAX_SECTIONS * (self._budget + 1), state.device)
        self._row_length = state.tokens.shape[1]

    def build(self, step: Step) -> Batch:
        lists = _Lists()
        for row in step.rows:
            self._add(lists, row)
        draw_places = [
            slot * self._row_length + position
            for slot, position in zip(lists.draw_slots, lists.draw_positions, strict=True)
        ]
        outputs = lists.draws + lists.judged
        if self._is_strict:
            self._pad_to_one_shape(lists, outputs, draw_places)
        else:
            self._pad_to_bucket(lists)
        outputs.extend(lists.read)
        num_tokens, num_outputs, num_draws = len(lists.slots), len(outputs), len(draw_places)
        filled = self._inputs.fill(
            lists.slots
            + lists.positions
            + lists.token_places
            + lists.cache_slots
            + outputs
            + lists.draw_slots
            + lists.draw_positions
            + draw_places
        )
        tokens, asked, draws = filled.split([4 * num_tokens, num_outputs, 3 * num_draws])
        slots, positions, places = draws.view(3, num_draws)
        return Batch(
            TokenInputs(*tokens.view(4, num_tokens)),
            RowSpans(lists.row_slots, lists.num_tokens, lists.ends),
            asked,
            len(lists.read),
            DrawInputs(slots, positions, places, lists.draw_slots, lists.draw_positions),
        )

    def decode_inputs(self, size: int) -> TokenInputs:
        """Where `build` puts the tokens of a decode step of this many rows: always the same addresses."""
        return TokenInputs(*self._inputs.device_buffer[: 4 * size].view(4, size))

    def fill_padding(self, size: int) -> None:
        """Make the next decode step one of this many padding rows."""
        lists = _Lists()
        self._add_padding(lists, [1] * size, 1)
        self._inputs.fill(lists.slots + lists.positions + lists.token_places + lists.cache_slots)

    def _add(self, lists: _Lists, row: Row) -> None:
        slot, start, end, num_tokens = row.lane.slot, row.start, row.end, row.num_tokens
        assert slot is not None
        blocks, size, first = row.lane.blocks, self._state.block_size, len(lists.slots)
        place = slot * self._row_length
        lists.slots.extend([slot] * num_tokens)
        lists.positions.extend(range(start, end))
        lists.token_places.extend(range(place + start, place + end))
        lists.cache_slots.extend([blocks[at // size] * size + at % size for at in range(start, end)])
        lists.row_slots.append(slot)
        lists.num_tokens.append(num_tokens)
        lists.ends.append(end)
        wanted = [first + at for at in row.output_positions]
        if row.purpose is Purpose.REWARD:
            lists.judged.extend(wanted)
        elif row.purpose is Purpose.FEATURES:
            lists.read.extend(wanted)
        elif wanted:
            lists.draws.extend(wanted)
            lists.draw_slots.append(slot)
            lists.draw_positions.append(end)

    def _add_padding(self, lists: _Lists, num_tokens: Sequence[int], end: int) -> None:
        """Rows of padding: their token is at position 0 of a slot that no lane has, in the null block."""
        slot, total = self._state.padding_slot, sum(num_tokens)
        lists.slots.extend([slot] * total)
        lists.positions.extend([0] * total)
        lists.token_places.extend([slot * self._row_length] * total)
        lists.cache_slots.extend([NULL_BLOCK * self._state.block_size] * total)
        lists.row_slots.extend([slot] * len(num_tokens))
        lists.num_tokens.extend(num_tokens)
        lists.ends.extend([end] * len(num_tokens))

    def _pad_to_bucket(self, lists: _Lists) -> None:
        num_rows = len(lists.num_tokens)
        if self.buckets and num_rows == len(lists.slots) and num_rows <= self.buckets[-1]:
            size = self.buckets[bisect.bisect_left(self.buckets, num_rows)]
            self._add_padding(lists, [1] * (size - num_rows), 1)

    def _pad_to_one_shape(self, lists: _Lists, outputs: list[int], draw_places: list[int]) -> None:
        num_missing = self._budget + 1 - len(lists.slots)
        self._add_padding(lists, [num_missing], 0)
        outputs.extend([self._budget] * (self._max_outputs - len(outputs)))
        slot, unread = self._state.padding_slot, self._row_length - 1
        num_missing = self._max_outputs - len(draw_places)
        draw_places.extend([slot * self._row_length + unread] * num_missing)
        lists.draw_slots.extend([slot] * num_missing)
        lists.draw_positions.extend([unread] * num_missing)
