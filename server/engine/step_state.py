"""Step state: holds on the device what steps read and write without the host: tokens, block tables, settings.

A running lane owns a slot (a column of these tensors) from its admission on. The drawn token is written here
on the device, so the next step can be launched before the host has read it. What the host changes is noted
down and written in one copy before the next step.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from trimtab.server.engine.block_manager import NULL_BLOCK
from trimtab.server.engine.device_copy import index_tensor, to_device
from trimtab.server.engine.lane import Choice, Lane
from trimtab.server.engine.request import ROW_FLOATS, ROW_INTS
from trimtab.server.engine.token_counts import TokenCounts

Pairs = tuple[tuple[int, float], ...]
DRAWN = -1  # as a token's id: the one that was drawn last in its slot
INTS = ("seeds", "choices", *ROW_INTS)
FLOATS = (*ROW_FLOATS, "strength")
"""Names of the columns that hold settings; those of the head weights follow the floats."""

ALIGNED_ROWS = 4  # of 4 or 8 bytes make a multiple of 16, by which Triton tells its kernels apart
Settings = Mapping[str, Tensor]
"""What rows were asked to do, [B] under each name of INTS and FLOATS, constant while a choice runs.
head_weights: [B, H]."""


@dataclass(frozen=True, slots=True)
class _Admission:
    ints: tuple[int, ...]
    floats: tuple[float, ...]


class StepState:
    """last_tokens [S + 1] i64; block_tables [S + 1, max_blocks] i64; the last row serves padding.

    last_tokens: the token drawn last in each slot, which the host may not have read yet. All others a step
    is fed come with it from the host.
    spent_kl: f64[S + 1], nats of each slot's reply so far: the very sum that the host keeps of it, so that a
    reply goes on after a preemption as if there had been none.
    reasons: bool[S + 1], whether a slot's next token is drawn within the reasoning; kept for the rows that a
    controller asks it of.
    memories: f32[S + 1, size] of each head, what its value remembers of each slot's reply: 0 before the first
    state. size is 0 of a head without a memory.
    counts, biases: what penalties and logit_bias of the slots that have any go by.
    version: changes whenever any slot's settings do.
    """

    def __init__(
        self,
        max_num_seqs: int,
        max_model_len: int,
        block_size: int,
        memory_sizes: Sequence[int],
        device: torch.device,
    ) -> None:
        """memory_sizes: see HeadBank; one entry per head."""
        num_heads = len(memory_sizes)
        num_slots = max_num_seqs + 1
        self.num_slots, self.padding_slot = num_slots, max_num_seqs
        self.block_size, self.num_heads, self.device = block_size, num_heads, device
        self.last_tokens = torch.zeros(num_slots, dtype=torch.long, device=device)
        self.max_blocks = -(-(max_model_len + 1) // block_size)
        self.block_tables = torch.full(
            (num_slots, self.max_blocks), NULL_BLOCK, dtype=torch.long, device=device
        )
        self._ints = torch.zeros(len(INTS), num_slots, dtype=torch.long, device=device)
        self._floats = torch.zeros(len(FLOATS) + num_heads, num_slots, device=device)
        self.spent_kl = torch.zeros(num_slots, dtype=torch.float64, device=device)
        self.reasons = torch.zeros(num_slots, dtype=torch.bool, device=device)
        self.memories = tuple(torch.zeros(num_slots, size, device=device) for size in memory_sizes)
        self.counts, self.biases = TokenCounts(device), RowBias(device)
        self.version = 0
        self._admissions: dict[int, _Admission] = {}
        self._forks: dict[int, int] = {}

    def remember_for(self, memory_sizes: Sequence[int]) -> None:
        """Heads have changed: memories of the columns whose sizes are others begin at 0."""
        pairs = zip(self.memories, memory_sizes, strict=True)
        self.memories = tuple(
            kept if kept.shape[1] == size else kept.new_zeros(self.num_slots, size) for kept, size in pairs
        )

    def admit(self, choice: Choice, seed: int, head_weights: Sequence[float], spent_kl: float) -> None:
        """Note everything that a step needs about a choice, for its lanes' slots."""
        for lane in choice.lanes:
            self.admit_lane(choice, lane, seed, head_weights, spent_kl)

    def admit_lane(
        self,
        choice: Choice,
        lane: Lane,
        seed: int,
        head_weights: Sequence[float],
        spent_kl: float,
        parent: Lane | None = None,
        reasons: bool = False,
    ) -> None:
        """The same for one of them. parent: whose reply it goes on with, and what values remember of it."""
        assert lane.slot is not None
        sampling = choice.request.sampling
        ints = (seed, choice.index + lane.index, *(getattr(sampling, name) for name in ROW_INTS))
        floats = (
            *(getattr(sampling, name) for name in ROW_FLOATS),
            choice.request.guidance.strength,
            *head_weights,
            spent_kl,
            float(reasons),
        )
        self._admissions[lane.slot] = _Admission(ints, floats)
        self._forks.pop(lane.slot, None)
        if parent is not None:
            assert parent.slot is not None
            self._forks[lane.slot] = parent.slot
        self.biases.admit(lane.slot, sampling.logit_bias)
        self.counts.forget(lane.slot)
        if sampling.has_penalties and not choice.is_reading:
            self.counts.admit(lane.slot, lane.tokens, choice.num_prompt_tokens)

    def forget_notes(self) -> None:
        """Drop what was noted and not written: every lane is to be admitted again."""
        self._admissions, self._forks = {}, {}
        self.counts.forget_notes()

    def write(self, lanes: Iterable[Lane]) -> None:
        """Bring the device up to date in one copy: what was noted, and new blocks of these lanes."""
        table_at, blocks = self._new_blocks(lanes)
        slots, admitted = list(self._admissions), list(self._admissions.values())
        self._admissions = {}
        self.counts.write()
        if not table_at and not slots:
            return
        if not slots:  # as in most steps
            self._write_blocks(*to_device(np.array((table_at, blocks), dtype=np.int64), self.device))
            return
        ints = [value for field in zip(*(a.ints for a in admitted), strict=True) for value in field]
        floats = [value for field in zip(*(a.floats for a in admitted), strict=True) for value in field]
        # All in one i64 array, floats as their bits: a copy costs the host the same whatever its length.
        packed = [np.array(part, dtype=np.int64) for part in (table_at, blocks, slots, ints)]
        packed.append(np.array(floats, dtype=np.float64).view(np.int64))
        arrived = to_device(np.concatenate(packed), self.device).split([len(part) for part in packed])
        self._write_blocks(arrived[0], arrived[1])
        self.version += 1
        self._ints.index_copy_(1, arrived[2], arrived[3].view(len(INTS), -1))
        self._write_memories(arrived[2])
        settings = arrived[4].view(torch.float64).view(len(self._floats) + 2, -1)
        self._floats.index_copy_(1, arrived[2], settings[:-2].float())
        self.spent_kl.index_copy_(0, arrived[2], settings[-2])
        self.reasons.index_copy_(0, arrived[2], settings[-1] > 0)

    def _write_memories(self, admitted: Tensor) -> None:
        forks, self._forks = self._forks, {}
        if not any(memory.shape[1] for memory in self.memories):
            return
        targets, parents = (index_tensor(list(part), self.device) for part in (forks, forks.values()))
        for memory in self.memories:
            if memory.shape[1]:
                remembered = memory.index_select(0, parents)
                memory.index_fill_(0, admitted, 0.0).index_copy_(0, targets, remembered)

    def _write_blocks(self, places: Tensor, blocks: Tensor) -> None:
        self.block_tables.view(-1).index_copy_(0, places, blocks)

    def settings(self, slots: Tensor) -> Settings:
        """Of the rows in these slots [B], while `version` stays; each at a multiple of 16 bytes."""
        num_rows = len(slots)
        padded = F.pad(slots, (0, -num_rows % ALIGNED_ROWS), value=self.padding_slot)
        ints, floats = (part.index_select(1, padded)[:, :num_rows] for part in (self._ints, self._floats))
        weights = floats[len(FLOATS) :].T.contiguous()
        columns = zip((*INTS, *FLOATS), (*ints.unbind(), *floats[: len(FLOATS)].unbind()), strict=True)
        return {**dict(columns), "head_weights": weights}

    def input_ids(self, slots: Tensor, ids: Tensor) -> Tensor:
        """Token ids [T] with those that are DRAWN filled in from the slots [T]."""
        return torch.where(ids == DRAWN, self.last_tokens.index_select(0, slots), ids)

    def _new_blocks(self, lanes: Iterable[Lane]) -> tuple[list[int], list[int]]:
        """Block table entries that the device does not hold yet: places in the flat table, and blocks."""
        places: list[int] = []
        blocks: list[int] = []
        for lane in [lane for lane in lanes if lane.num_synced_blocks < len(lane.blocks)]:
            assert lane.slot is not None
            first, start = lane.num_synced_blocks, lane.slot * self.max_blocks
            places.extend(range(start + first, start + len(lane.blocks)))
            blocks.extend(lane.blocks[first:])
            lane.num_synced_blocks = len(lane.blocks)
        return places, blocks


class RowBias:
    """Logit biases, tokens i64[E] and values f32[E] of the slots that have any, read once per request."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._by_slot: dict[int, tuple[Pairs, Tensor, Tensor]] = {}

    def admit(self, slot: int, pairs: Pairs) -> None:
        """Take over a slot; pairs: (token, bias) with distinct tokens, possibly none."""
        self._by_slot.pop(slot, None)
        if pairs:
            # The choices of one request share their pairs, which may be many.
            known = next((held for held in self._by_slot.values() if held[0] is pairs), None)
            self._by_slot[slot] = known or (pairs, *self._read(pairs))

    def gather(self, slots: Sequence[int], vocab_size: int) -> tuple[Tensor, Tensor] | None:
        """Places i64[E] in the flattened logits [B, V] of rows in these slots, and what to add there f32[E];
        None where no row has a bias. The host waits for nothing."""
        held = [(row, self._by_slot[slot]) for row, slot in enumerate(slots) if slot in self._by_slot]
        if not held:
            return None
        places = [tokens + row * vocab_size for row, (_, tokens, _) in held]
        return torch.cat(places), torch.cat([values for _, (_, _, values) in held])

    def _read(self, pairs: Pairs) -> tuple[Tensor, Tensor]:
        tokens = np.fromiter((token for token, _ in pairs), np.int64, len(pairs))
        values = np.fromiter((value for _, value in pairs), np.float32, len(pairs))
        return to_device(tokens, self._device), to_device(values, self._device)
