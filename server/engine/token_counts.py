"""Token counts of penalised replies, kept up to date on the device: of what occurs, not of a vocabulary."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from trimtab.kernels.penalties import count_drawn
from trimtab.server.engine.device_copy import to_device

MIN_WIDTH = 256


@dataclass(frozen=True, slots=True)
class CountedRows:
    """Where the counts of R rows are. rows: i64[R], of the table. offsets: i64[R], what to take from the
    position of a row's next token for the number of its entries; host_offsets: the same on the host."""

    rows: Tensor
    offsets: Tensor
    host_offsets: Sequence[int]


@dataclass(frozen=True, slots=True)
class Entries:
    """tokens, counts: i64[R, W] of R rows, of which num_entries [R] count; others repeat the first."""

    tokens: Tensor
    counts: Tensor
    num_entries: Tensor


class TokenCounts:
    """A table [P, 2, C] i64 of (token, occurrences in the reply), a row for each slot that is penalised.

    A row begins with the distinct tokens of prompt and reply at its admission. Every drawn token adds one
    to its count and one entry to the row, so that the host knows how many there are: the token itself
    where it is new, else the first entry once more. Entries of one token always carry one count.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._table = torch.zeros(0, 2, 0, dtype=torch.long, device=device)
        self._rows: dict[int, int] = {}  # slot: row
        self._offsets: dict[int, int] = {}  # slot: see CountedRows
        self._free: list[int] = []
        self._noted: dict[int, np.ndarray] = {}  # slot: [2, D]

    def admit(self, slot: int, tokens: Sequence[int], num_prompt: int) -> None:
        """Note the history of a slot, none of which is still on its way from the device."""
        history = np.array(tokens, dtype=np.int64)
        ids = np.unique(history)
        replied, occurrences = np.unique(history[num_prompt:], return_counts=True)
        counts = np.zeros_like(ids)
        counts[np.searchsorted(ids, replied)] = occurrences
        self._noted[slot] = np.stack([ids, counts])
        self._offsets[slot] = len(history) - len(ids)

    def forget(self, slot: int) -> None:
        """Give the slot's row to others, and all memory back with the last one."""
        self._noted.pop(slot, None)
        self._offsets.pop(slot, None)
        row = self._rows.pop(slot, None)
        if row is not None:
            self._free.append(row)
        if not self._rows:
            self._table, self._free = self._table.new_zeros(0, 2, 0), []

    def forget_notes(self) -> None:
        self._noted = {}

    def write(self) -> None:
        """Bring the device up to date with what was noted."""
        for slot, entries in self._noted.items():
            if not self._free:
                self._grow(max(1, 2 * len(self._table)), self._table.shape[2])
            self._reserve(entries.shape[1] + 1)
            row = self._rows[slot] = self._free.pop()
            self._table[row, :, : entries.shape[1]] = to_device(entries, self._device)
        self._noted = {}

    def locate(self, slots: Sequence[int]) -> CountedRows:
        """The rows of these slots; valid until any slot is admitted or forgotten."""
        offsets = [self._offsets[slot] for slot in slots]
        places = np.array([[self._rows[slot] for slot in slots], offsets], dtype=np.int64)
        rows, device_offsets = to_device(places, self._device)
        return CountedRows(rows, device_offsets, offsets)

    def gather(self, counted: CountedRows, positions: Tensor, host_positions: Sequence[int]) -> Entries:
        """What rows hold whose next tokens are at these positions [R]."""
        width = max(at - offset for at, offset in zip(host_positions, counted.host_offsets, strict=True))
        self._reserve(width + 1)
        entries = self._table[:, :, :width].index_select(0, counted.rows)
        num_entries = positions - counted.offsets
        is_there = torch.arange(width, device=self._device) < num_entries[:, None]
        tokens, counts = torch.where(is_there[:, None], entries, entries[:, :, :1]).unbind(1)
        return Entries(tokens, counts, num_entries)

    def add(self, counted: CountedRows, entries: Entries, drawn: Tensor) -> None:
        """Count the drawn tokens [R] of rows that hold these entries."""
        count_drawn(self._table, counted.rows, entries.tokens, entries.counts, entries.num_entries, drawn)

    def _reserve(self, width: int) -> None:
        num_rows, _, capacity = self._table.shape
        if width > capacity:
            self._grow(num_rows, max(width, 2 * capacity, MIN_WIDTH))

    def _grow(self, num_rows: int, width: int) -> None:
        old = self._table
        self._table = torch.zeros(num_rows, 2, width, dtype=torch.long, device=self._device)
        self._table[: len(old), :, : old.shape[2]] = old
        self._free.extend(range(len(old), num_rows))
