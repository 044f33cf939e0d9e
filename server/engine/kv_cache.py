"""The paged key/value cache of one model on one device."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True)
class LayerShape:
    """Sizes of one attention layer's cache entries."""

    num_kv_heads: int
    key_dim: int
    value_dim: int

    @property
    def numel(self) -> int:
        return self.num_kv_heads * (self.key_dim + self.value_dim)


class KVCache:
    """keys[l]: [num_blocks, block_size, num_kv_heads, key_dim]; values[l] alike. Starts as zeros."""

    def __init__(
        self,
        layers: Sequence[LayerShape],
        num_blocks: int,
        block_size: int,
        dtype: torch.dtype,
        device: torch.device,
    ) -> None:
        self.num_blocks, self.block_size = num_blocks, block_size

        def zeros(heads: int, dim: int) -> Tensor:
            return torch.zeros(num_blocks, block_size, heads, dim, dtype=dtype, device=device)

        self.keys = [zeros(layer.num_kv_heads, layer.key_dim) for layer in layers]
        self.values = [zeros(layer.num_kv_heads, layer.value_dim) for layer in layers]

    def store(self, layer: int, keys: Tensor, values: Tensor, slots: Tensor) -> None:
        """Write keys [T, heads, dim] and values at flat token slots [T] (block · block_size + offset)."""
        self.keys[layer].flatten(0, 1).index_copy_(0, slots, keys)
        self.values[layer].flatten(0, 1).index_copy_(0, slots, values)

    def gather(self, layer: int, blocks: Tensor) -> tuple[Tensor, Tensor]:
        """Keys and values of block tables [R, N] as [R, heads, N · block_size, dim]."""
        rows, flat = blocks.shape[0], blocks.reshape(-1)

        def take(cache: Tensor) -> Tensor:
            return cache.index_select(0, flat).view(rows, -1, *cache.shape[2:]).transpose(1, 2)

        return take(self.keys[layer]), take(self.values[layer])

    def copy_blocks(self, copies: Sequence[tuple[int, int]]) -> None:
        """Copy whole blocks, in order: a later copy may read what an earlier one wrote."""
        for cache in (*self.keys, *self.values):
            for source, target in copies:
                cache[target] = cache[source]

    def clear_blocks(self, blocks: Sequence[int]) -> None:
        """Zero blocks that may hold NaN, which even a masked key would pass on."""
        for cache in (*self.keys, *self.values):
            cache[list(blocks)] = 0


def num_blocks_within(gib: float, layers: Sequence[LayerShape], block_size: int, dtype: torch.dtype) -> int:
    bytes_per_block = sum(layer.numel for layer in layers) * block_size * dtype.itemsize
    return int(gib * 2**30) // bytes_per_block
