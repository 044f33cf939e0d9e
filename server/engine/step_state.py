"""Device-resident state that a step reads and writes without the host: tokens, block tables, row settings.

A running lane owns a slot (a row of these tensors) from its admission on. The drawn token is written here
on the device, so the next step can be launched before the host has read it.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from trimtab.server.engine.block_manager import NULL_BLOCK
from trimtab.server.engine.lane import Choice, Lane


class StepState:
    """tokens [S + 1, max_len] i64; block_tables [S + 1, max_blocks] i64; the last row serves padding."""

    def __init__(
        self, max_num_seqs: int, max_model_len: int, block_size: int, num_heads: int, device: torch.device
    ) -> None:
        rows = max_num_seqs + 1
        self.padding_slot = max_num_seqs
        self.block_size = block_size
        self.tokens = torch.zeros(rows, max_model_len + 1, dtype=torch.long, device=device)
        max_blocks = -(-(max_model_len + 1) // block_size)
        self.block_tables = torch.full((rows, max_blocks), NULL_BLOCK, dtype=torch.long, device=device)

        def column(dtype: torch.dtype) -> Tensor:
            return torch.zeros(rows, dtype=dtype, device=device)

        self.seed, self.choice = column(torch.long), column(torch.long)
        self.prompt_len, self.top_k = column(torch.long), column(torch.long)
        self.temperature, self.top_p, self.min_p = (column(torch.float32) for _ in range(3))
        self.presence, self.frequency, self.repetition = (column(torch.float32) for _ in range(3))
        self.strength, self.spent_kl = column(torch.float32), column(torch.float32)
        self.head_weights = torch.zeros(rows, num_heads, dtype=torch.float32, device=device)

    def admit(self, choice: Choice, seed: int, head_weights: list[float], spent_kl: float) -> None:
        """Write everything a step needs about a choice into its lanes' slots."""
        sampling = choice.request.sampling
        for lane in choice.lanes:
            slot = lane.slot
            assert slot is not None
            self.tokens[slot, : len(lane.tokens)] = torch.tensor(lane.tokens)
            self.seed[slot], self.choice[slot] = seed, choice.index
            self.prompt_len[slot], self.top_k[slot] = choice.num_prompt_tokens, sampling.top_k
            self.temperature[slot] = sampling.temperature
            self.top_p[slot], self.min_p[slot] = sampling.top_p, sampling.min_p
            self.presence[slot], self.frequency[slot] = sampling.presence_penalty, sampling.frequency_penalty
            self.repetition[slot] = sampling.repetition_penalty
            self.strength[slot] = choice.request.guidance.strength
            self.spent_kl[slot] = spent_kl
            self.head_weights[slot] = torch.tensor(head_weights)

    def rewrite_tokens(self, lane: Lane) -> None:
        """Bring the device's tokens of a running lane in line with the host's."""
        if lane.slot is not None:
            self.tokens[lane.slot, : len(lane.tokens)] = torch.tensor(lane.tokens)

    def sync_blocks(self, lanes: Iterable[Lane]) -> None:
        """Copy block table entries that the device does not hold yet."""
        slots, columns, blocks = [], [], []
        for lane in lanes:
            for i in range(lane.num_synced_blocks, len(lane.blocks)):
                slots.append(lane.slot)
                columns.append(i)
                blocks.append(lane.blocks[i])
            lane.num_synced_blocks = len(lane.blocks)
        if slots:
            rows = torch.tensor([slots, columns, blocks], device=self.block_tables.device)
            self.block_tables[rows[0], rows[1]] = rows[2]

    def cache_slots(self, slots: Tensor, positions: Tensor) -> Tensor:
        """Flat cache slot of each (lane slot [T], position [T])."""
        blocks = self.block_tables[slots, positions // self.block_size]
        return blocks * self.block_size + positions % self.block_size
