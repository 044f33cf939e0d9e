"""Device-resident state that a step reads and writes without the host: tokens, block tables, row settings.

A running lane owns a slot (a column of these tensors) from its admission on. The drawn token is written here
on the device, so the next step can be launched before the host has read it. What the host changes is noted
down and written in one copy before the next step.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from trimtab.server.engine.block_manager import NULL_BLOCK
from trimtab.server.engine.device_copy import to_device
from trimtab.server.engine.lane import Choice, Lane

NUM_INTS = 4  # of RowSettings: seeds, choices, prompt_lengths, top_k
NUM_FLOATS = 7  # of RowSettings: temperature … strength; the head weights follow


@dataclass(frozen=True, slots=True)
class RowSettings:
    """What rows were asked to do, [B] each, constant while a choice runs. head_weights: [B, H]."""

    seeds: Tensor
    choices: Tensor
    prompt_lengths: Tensor
    top_k: Tensor
    temperature: Tensor
    top_p: Tensor
    min_p: Tensor
    presence: Tensor
    frequency: Tensor
    repetition: Tensor
    strength: Tensor
    head_weights: Tensor


@dataclass(frozen=True, slots=True)
class _Admission:
    ints: tuple[int, ...]
    floats: tuple[float, ...]


class StepState:
    """tokens [S + 1, max_len] i64; block_tables [S + 1, max_blocks] i64; the last row serves padding.

    spent_kl: f32[S + 1], nats of each slot's reply so far.
    version: changes whenever any slot's settings do.
    """

    def __init__(
        self, max_num_seqs: int, max_model_len: int, block_size: int, num_heads: int, device: torch.device
    ) -> None:
        num_slots = max_num_seqs + 1
        self.padding_slot, self.block_size, self.device = max_num_seqs, block_size, device
        self.tokens = torch.zeros(num_slots, max_model_len + 1, dtype=torch.long, device=device)
        self.max_blocks = -(-(max_model_len + 1) // block_size)
        self.block_tables = torch.full(
            (num_slots, self.max_blocks), NULL_BLOCK, dtype=torch.long, device=device
        )
        self._ints = torch.zeros(NUM_INTS, num_slots, dtype=torch.long, device=device)
        self._floats = torch.zeros(NUM_FLOATS + num_heads + 1, num_slots, device=device)
        self.spent_kl = self._floats[-1]
        self.version = 0
        self._admissions: dict[int, _Admission] = {}
        self._token_writes: dict[int, tuple[int, Sequence[int]]] = {}  # slot: first position, tokens

    def admit(self, choice: Choice, seed: int, head_weights: Sequence[float], spent_kl: float) -> None:
        """Note everything that a step needs about a choice, for its lanes' slots."""
        sampling = choice.request.sampling
        ints = (seed, choice.index, choice.num_prompt_tokens, sampling.top_k)
        floats = (
            sampling.temperature,
            sampling.top_p,
            sampling.min_p,
            sampling.presence_penalty,
            sampling.frequency_penalty,
            sampling.repetition_penalty,
            choice.request.guidance.strength,
            *head_weights,
            spent_kl,
        )
        for lane in choice.lanes:
            assert lane.slot is not None
            self._admissions[lane.slot] = _Admission(ints, floats)
            self._token_writes[lane.slot] = (0, list(lane.tokens))

    def forget_notes(self) -> None:
        """Drop what was noted and not written: every lane is to be admitted again."""
        self._admissions, self._token_writes = {}, {}

    def rewrite_last_token(self, lane: Lane) -> None:
        """Note that a running lane's last token is the host's, whatever the device has drawn there."""
        if lane.slot is not None:
            self._token_writes[lane.slot] = (len(lane.tokens) - 1, lane.tokens[-1:])

    def write(self, lanes: Iterable[Lane]) -> None:
        """Bring the device up to date in one copy: what was noted, and new blocks of these lanes."""
        table_at, blocks = self._new_blocks(lanes)
        token_at, tokens = self._noted_tokens()
        slots, admitted = list(self._admissions), list(self._admissions.values())
        self._admissions, self._token_writes = {}, {}
        if not table_at and not token_at:
            return
        ints = [value for field in zip(*(a.ints for a in admitted), strict=True) for value in field]
        floats = [value for field in zip(*(a.floats for a in admitted), strict=True) for value in field]
        parts = (table_at, blocks, token_at, tokens, slots, ints)
        packed = [np.array(part, dtype=np.int64) for part in parts]
        packed.append(np.array(floats, dtype=np.float64).view(np.int64))
        arrived = to_device(np.concatenate(packed), self.device).split([len(part) for part in packed])
        if table_at:
            self.block_tables.view(-1).index_copy_(0, arrived[0], arrived[1])
        if token_at:
            self.tokens.view(-1).index_copy_(0, arrived[2], arrived[3])
        if slots:
            self.version += 1
            self._ints.index_copy_(1, arrived[4], arrived[5].view(NUM_INTS, -1))
            settings = arrived[6].view(torch.float64).float()
            self._floats.index_copy_(1, arrived[4], settings.view(len(self._floats), -1))

    def settings(self, slots: Tensor) -> RowSettings:
        """Of the rows in these slots [B]; valid while `version` stays."""
        ints, floats = self._ints.index_select(1, slots), self._floats.index_select(1, slots)
        weights = floats[NUM_FLOATS:-1].T.contiguous()
        fields = (*ints.unbind(), *floats[:NUM_FLOATS].unbind(), weights)
        return RowSettings(*fields)

    def _new_blocks(self, lanes: Iterable[Lane]) -> tuple[list[int], list[int]]:
        """Block table entries that the device does not hold yet: places in the flat table, and blocks."""
        places: list[int] = []
        blocks: list[int] = []
        for lane in lanes:
            first, last = lane.num_synced_blocks, len(lane.blocks)
            if first < last:
                assert lane.slot is not None
                start = lane.slot * self.max_blocks
                places.extend(range(start + first, start + last))
                blocks.extend(lane.blocks[first:])
                lane.num_synced_blocks = last
        return places, blocks

    def _noted_tokens(self) -> tuple[list[int], list[int]]:
        places: list[int] = []
        tokens: list[int] = []
        for slot, (first, noted) in self._token_writes.items():
            start = slot * self.tokens.shape[1] + first
            places.extend(range(start, start + len(noted)))
            tokens.extend(noted)
        return places, tokens
