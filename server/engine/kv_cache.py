"""Key/value cache: keeps the keys and values of one model's tokens in blocks on one device."""

from __future__ import annotations

import math
import mmap
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from trimtab.server.engine.device_copy import index_tensor


@dataclass(frozen=True, slots=True)
class LayerShape:
    """Sizes of one attention layer's cache entries. window: a query sees the last so many positions."""

    num_kv_heads: int
    key_dim: int
    value_dim: int
    window: int | None = None

    @property
    def numel(self) -> int:
        return self.num_kv_heads * (self.key_dim + self.value_dim)


class KVCache:
    """keys[l]: [num_blocks, block_size, num_kv_heads, key_dim]; values[l] alike. Starts as zeros.

    for_native: as the C++ backend reads them, keys [num_blocks, num_kv_heads, key_dim, block_size] and values
    [num_blocks, num_kv_heads, block_size, value_dim]; `store` and `gather` are not for it.
    """

    def __init__(
        self,
        layers: Sequence[LayerShape],
        num_blocks: int,
        block_size: int,
        dtype: torch.dtype,
        device: torch.device,
        *,
        for_native: bool = False,
    ) -> None:
        self.num_blocks, self.block_size, self.dtype, self.device = num_blocks, block_size, dtype, device
        self.windows = [layer.window for layer in layers]

        def zeros(*shape: int) -> Tensor:
            return _zeros((num_blocks, *shape), dtype, device)

        if for_native:
            self.keys = [zeros(layer.num_kv_heads, layer.key_dim, block_size) for layer in layers]
            self.values = [zeros(layer.num_kv_heads, block_size, layer.value_dim) for layer in layers]
        else:
            self.keys = [zeros(block_size, layer.num_kv_heads, layer.key_dim) for layer in layers]
            self.values = [zeros(block_size, layer.num_kv_heads, layer.value_dim) for layer in layers]
        self._flat_keys = [keys.flatten(0, 1) for keys in self.keys]
        self._flat_values = [values.flatten(0, 1) for values in self.values]

    def store(self, layer: int, keys: Tensor, values: Tensor, slots: Tensor) -> None:
        """Write keys [T, heads, dim] and values at flat token slots [T] (block · block_size + offset)."""
        self._flat_keys[layer].index_copy_(0, slots, keys)
        self._flat_values[layer].index_copy_(0, slots, values)

    def gather(self, layer: int, blocks: Tensor) -> tuple[Tensor, Tensor]:
        """Keys and values of block tables [R, N] as [R, heads, N · block_size, dim]."""
        rows, flat = blocks.shape[0], blocks.reshape(-1)

        def take(cache: Tensor) -> Tensor:
            return cache.index_select(0, flat).view(rows, -1, *cache.shape[2:]).transpose(1, 2)

        return take(self.keys[layer]), take(self.values[layer])

    def copy_blocks(self, copies: Sequence[tuple[int, int]]) -> None:
        """Copy whole blocks (source, target), in order: a later copy may read what an earlier one wrote."""
        if not copies:
            return
        origins: dict[int, int] = {}  # of each target: the block whose present content it gets
        for source, target in copies:
            origins[target] = origins.get(source, source)
        targets, sources = index_tensor([*origins, *origins.values()], self.device).chunk(2)
        for cache in (*self.keys, *self.values):
            cache.index_copy_(0, targets, cache.index_select(0, sources))

    def clear_blocks(self, blocks: Sequence[int]) -> None:
        """Zero blocks that may hold NaN, which even a masked key would pass on."""
        index = index_tensor(blocks, self.device)
        for cache in (*self.keys, *self.values):
            cache.index_fill_(0, index, 0)


def _zeros(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
    """On a CPU of pages that take memory when they are first written to, which `torch.zeros` does at once: a
    job of few short replies holds the blocks that it uses, whatever the cache may grow to."""
    if device.type != "cpu":
        return torch.zeros(shape, dtype=dtype, device=device)
    num_bytes = math.prod(shape) * dtype.itemsize
    # Mapped, not allocated: what malloc has kept of earlier tensors would be filled with zeros.
    memory = torch.from_numpy(np.frombuffer(mmap.mmap(-1, max(num_bytes, 1)), np.uint8))
    return memory[:num_bytes].view(dtype).view(shape)


def bytes_per_block(layers: Sequence[LayerShape], block_size: int, dtype: torch.dtype) -> int:
    return sum(layer.numel for layer in layers) * block_size * dtype.itemsize
