"""Tiles of positions times vocabulary to work in: what memory does not hold at once is gone over a few rows
at a time."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

WriteLogits = Callable[[Tensor, Tensor], None]
"""Writes the base's z of h [n, d] into f32[n, V]."""
KEPT_BYTES = {"cpu": 2**29, "cuda": 2**32}
"""Of probabilities at the most that a step keeps for its gradient: what is beyond is computed again."""
TILE_BYTES = 2**26


class Workspace:
    """Memory for probabilities, lent from one step to the next: to have it mapped anew costs a step a tenth
    of its time."""

    def __init__(self) -> None:
        self._free: Tensor | None = None

    def take(
        self, num_rows: int, vocab_size: int, device: torch.device, dtype: torch.dtype = torch.float32
    ) -> Tensor:
        """[n, V], of no more rows than may be kept; it holds anything."""
        num_rows = min(num_rows, KEPT_BYTES[device.type] // (dtype.itemsize * vocab_size))
        free, self._free = self._free, None
        if free is None or len(free) < num_rows or free.shape[1] != vocab_size or free.dtype != dtype:
            free = torch.empty(num_rows, vocab_size, dtype=dtype, device=device)
        return free[:num_rows]

    def give_back(self, taken: Tensor) -> None:
        """Nobody reads it any more."""
        self._free = taken if taken._base is None else taken._base


def tiles(kept: Tensor, num_rows: int, *, start: int = 0) -> Iterator[tuple[slice, Tensor]]:
    """(rows, f32[n, V] to write to) of rows start … num_rows: those that `kept` has room for in its own
    memory, at once, and the others a few at a time in one that is used again."""
    if start < len(kept) and kept.dtype == torch.float32:
        yield slice(start, len(kept)), kept[start:]
        start = len(kept)
    size = tile_rows(kept.shape[1])
    tile = kept.new_empty(max(0, min(size, num_rows - start)), kept.shape[1], dtype=torch.float32)
    while start < num_rows:
        end = min(start + size, len(kept) if start < len(kept) else num_rows)
        yield slice(start, end), tile[: end - start]
        start = end


def tile_rows(vocab_size: int) -> int:
    """Rows of a tile."""
    return max(1, TILE_BYTES // (4 * vocab_size))


def store(kept: Tensor, rows: slice, tile: Tensor) -> Tensor:
    """The tile in the dtype of `kept`, and in it where it is to be kept."""
    if rows.stop > len(kept):
        return tile.to(kept.dtype)
    if kept.dtype != torch.float32:
        kept[rows] = tile
    return kept[rows]
