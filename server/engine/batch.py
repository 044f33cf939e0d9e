"""Packs a step's rows into one batch on static buffers, padded to a bucket where CUDA graphs need it."""

from __future__ import annotations

import bisect
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from trimtab.server.engine.attention import AttentionPlan, RowGroup, group_rows
from trimtab.server.engine.scheduler import Step
from trimtab.server.engine.step_state import StepState


@dataclass(frozen=True, slots=True)
class Batch:
    """input_ids, positions: [1, T] views of the static buffers. output_indices: [K] into the T tokens, in
    the order of the step's rows and their output_positions."""

    input_ids: Tensor
    positions: Tensor
    plan: AttentionPlan
    output_indices: Tensor


def decode_buckets(max_num_seqs: int) -> tuple[int, ...]:
    """Batch sizes that decode steps are padded to: 1, 2, 4, then multiples of 8."""
    sizes = [1, 2, 4, *range(8, max_num_seqs, 8), max_num_seqs]
    return tuple(sorted({size for size in sizes if size <= max_num_seqs}))


class BatchBuilder:
    """buckets: () leaves every step at its own size."""

    def __init__(
        self, state: StepState, max_num_tokens: int, buckets: Sequence[int], dtype: torch.dtype
    ) -> None:
        self._state, self._buckets, self._dtype = state, tuple(buckets), dtype
        device = state.tokens.device

        def buffer() -> Tensor:
            return torch.zeros(max_num_tokens, dtype=torch.long, device=device)

        self._row_slots, self._input_ids, self._positions, self._slots = (buffer() for _ in range(4))

    def build(self, step: Step) -> Batch:
        lengths = [row.num_tokens for row in step.rows]
        starts = [row.start for row in step.rows]
        lane_slots = [row.lane.slot for row in step.rows]
        num_padding = self._num_padding(lengths)
        lengths += [1] * num_padding
        starts += [0] * num_padding
        lane_slots += [self._state.padding_slot] * num_padding
        offsets = np.concatenate(([0], np.cumsum(lengths)))

        num_tokens = int(offsets[-1])
        in_row = np.arange(num_tokens) - np.repeat(offsets[:-1], lengths)
        positions = self._fill(self._positions, in_row + np.repeat(starts, lengths))
        slots = self._fill(self._row_slots, np.repeat(np.array(lane_slots), lengths))
        input_ids, cache_slots = self._input_ids[:num_tokens], self._slots[:num_tokens]
        input_ids.copy_(self._state.tokens[slots, positions])
        cache_slots.copy_(self._state.cache_slots(slots, positions))
        ends = [start + n for start, n in zip(starts, lengths, strict=True)]
        groups = self._groups(lengths, ends, lane_slots, offsets, positions)
        outputs = [offsets[i] + at for i, row in enumerate(step.rows) for at in row.output_positions]
        device = positions.device
        return Batch(
            input_ids[None],
            positions[None],
            AttentionPlan(cache_slots, groups),
            torch.tensor(outputs, dtype=torch.long, device=device),
        )

    def _num_padding(self, lengths: list[int]) -> int:
        if not self._buckets or max(lengths) > 1 or len(lengths) > self._buckets[-1]:
            return 0
        return self._buckets[bisect.bisect_left(self._buckets, len(lengths))] - len(lengths)

    def _fill(self, buffer: Tensor, values: np.ndarray) -> Tensor:
        view = buffer[: len(values)]
        view.copy_(torch.from_numpy(values))
        return view

    def _groups(
        self,
        lengths: list[int],
        ends: list[int],
        lane_slots: Sequence[int | None],
        offsets: np.ndarray,
        positions: Tensor,
    ) -> list[RowGroup]:
        size, tables = self._state.block_size, self._state.block_tables
        grouped = group_rows(lengths, ends, size)
        groups = []
        for rows in grouped:
            num_blocks = -(-max(ends[row] for row in rows) // size)
            n = lengths[rows[0]]
            blocks = tables[
                torch.tensor([lane_slots[row] for row in rows], device=tables.device), :num_blocks
            ]
            if len(grouped) == 1:
                tokens, queries = None, positions
            else:
                index = np.concatenate([np.arange(offsets[row], offsets[row] + n) for row in rows])
                tokens = torch.from_numpy(index).to(positions.device)
                queries = positions[tokens]
            groups.append(RowGroup(tokens, blocks, queries.view(len(rows), n), size, self._dtype))
        return groups
