"""Batches of rows over a paged cache, NaN wherever no row may look, and their attention in float64."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

NOWHERE = 0  # a block of NaN that no row owns
SCALE = 0.1  # softmaxes from flat at 16 dimensions to peaked at 128
SHAPES = {
    "one head per key head": {"num_heads": 3, "num_kv_heads": 3, "dim": 16, "value_dim": 16},
    "four heads per key head": {"num_heads": 8, "num_kv_heads": 2, "dim": 80, "value_dim": 48},
    "three heads per key head": {"num_heads": 6, "num_kv_heads": 2, "dim": 64, "value_dim": 64},
    "all heads on one key head": {"num_heads": 8, "num_kv_heads": 1, "dim": 128, "value_dim": 128},
}


@dataclass(frozen=True)
class PagedBatch:
    """Rows with `queries[r]` [n, H, D] as the last of `keys[r]` [L, Hkv, D] and `values[r]` [L, Hkv, Dv].

    Every row's blocks lie scattered over one cache that all batches picked from this one share.
    """

    queries: list[Tensor]
    keys: list[Tensor]
    values: list[Tensor]
    tables: list[Tensor]
    key_cache: Tensor
    value_cache: Tensor

    def pick(self, rows: Sequence[int]) -> PagedBatch:
        lists = ([of[row] for row in rows] for of in (self.queries, self.keys, self.values, self.tables))
        return PagedBatch(*lists, self.key_cache, self.value_cache)

    def chunk(self, row: int, first: int, stop: int) -> PagedBatch:
        """The row alone, with its queries first … stop − 1 new and the later ones not yet there."""
        keep = len(self.keys[row]) - len(self.queries[row]) + stop
        return PagedBatch(
            [self.queries[row][first:stop]],
            [self.keys[row][:keep]],
            [self.values[row][:keep]],
            [self.tables[row]],
            self.key_cache,
            self.value_cache,
        )

    def arguments(self, table_dtype: torch.dtype = torch.int64) -> dict[str, Any]:
        """What `paged_attention` is called with, the query head-major as models give it."""
        lengths = [len(query) for query in self.queries]
        device = self.key_cache.device
        tables = torch.full((len(lengths), max(map(len, self.tables))), NOWHERE, dtype=table_dtype)
        for row, table in enumerate(self.tables):
            tables[row, : len(table)] = table
        starts = torch.tensor([0, *lengths]).cumsum(0)
        return {
            "query": torch.cat(self.queries).transpose(0, 1).contiguous().transpose(0, 1).to(device),
            "key_cache": self.key_cache,
            "value_cache": self.value_cache,
            "block_tables": tables.to(device),
            "query_starts": starts.to(device, torch.int32),
            "context_lens": torch.tensor([len(keys) for keys in self.keys]).to(device, torch.int32),
            "max_query_len": max(lengths),
        }

    def expected(self, scale: float, window: int | None = None, softcap: float | None = None) -> Tensor:
        """f64[T, H, Dv], query by query."""
        return torch.stack(
            [
                _attend(query, keys[:seen], values[:seen], scale, window, softcap)
                for queries, keys, values in zip(self.queries, self.keys, self.values, strict=True)
                for seen, query in enumerate(queries, start=len(keys) - len(queries) + 1)
            ]
        )


def _attend(
    query: Tensor, keys: Tensor, values: Tensor, scale: float, window: int | None, softcap: float | None
) -> Tensor:
    """One query [H, D] over all keys [L, Hkv, D] but those outside the window."""
    group = len(query) // keys.shape[1]
    out = torch.zeros(len(query), values.shape[2], dtype=torch.float64)
    if window is not None:
        keys, values = keys[-window:], values[-window:]
    for head in range(len(query) if len(keys) else 0):
        scores = scale * (keys[:, head // group].double() @ query[head].double())
        if softcap is not None:
            scores = softcap * (scores / softcap).tanh()
        out[head] = scores.softmax(0) @ values[:, head // group].double()
    return out


def make_paged_batch(
    rows: Sequence[tuple[int, int]],
    *,
    num_heads: int = 4,
    num_kv_heads: int = 2,
    dim: int = 16,
    value_dim: int = 16,
    block_size: int = 8,
    dtype: torch.dtype = torch.float32,
    device: str = "cpu",
) -> PagedBatch:
    """rows: (number of queries, context) of each; a context of 0 is padding."""
    generator = torch.Generator().manual_seed(0)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator).to(dtype)

    blocks = [-(-context // block_size) for _, context in rows]
    tables = list((torch.randperm(sum(blocks), generator=generator) + NOWHERE + 1).split(blocks))
    queries = [2 * normal(count, num_heads, dim) for count, _ in rows]
    keys = [normal(context, num_kv_heads, dim) for _, context in rows]
    values = [normal(context, num_kv_heads, value_dim) for _, context in rows]
    caches = []
    for given, size in ((keys, dim), (values, value_dim)):
        cache = torch.full((sum(blocks) + 1, block_size, num_kv_heads, size), torch.nan, dtype=dtype)
        for table, mine in zip(tables, given, strict=True):
            for block, part in zip(table.tolist(), mine.split(block_size), strict=False):
                cache[block, : len(part)] = part
        caches.append(cache.to(device))
    return PagedBatch(queries, keys, values, tables, *caches)
