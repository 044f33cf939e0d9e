"""Causal attention of packed query rows over keys and values in a paged cache."""

# mypy: allow-untyped-defs, allow-incomplete-defs

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from trimtab.kernels.base_statistics import exponent_origin
from trimtab.kernels.dispatch import choose_backend, jit, tl, triton

LOG2_E = math.log2(math.e)
MIN_CHUNK = 256  # keys below which a split is not worth its merge
PROGRAMS = 128  # that one decoded row is cut into: about the multiprocessors of a large GPU
SEARCH = 256  # rows looked at together to find the row of a tile


@dataclass(frozen=True, slots=True)
class _Config:
    """Tile sizes of both kernels; they follow from head size and dtype, never from the batch."""

    decode_keys: int
    decode_warps: int
    decode_stages: int
    prefill_queries: int  # times heads of a group
    prefill_keys: int
    prefill_warps: int
    prefill_stages: int


def _config(padded_dim: int, dtype: torch.dtype) -> _Config:
    """Chosen to fit 99 KiB of shared memory and the registers of Ampere and Hopper alike.

    A key's address hangs on a number loaded from the block table, and the compiler shares the stages out
    between the two loads: five keep two tiles of keys and values in flight.
    """
    if dtype == torch.float32:  # IEEE products, without tensor cores
        rows = 32 if padded_dim <= 128 else 16
        return _Config(32, 8, 2, rows, rows, 8, 2)
    if padded_dim <= 128:
        return _Config(64, 4, 5, 64, 64, 4, 3)
    return _Config(32, 4, 5, 64, 32, 8, 3)


def _num_splits(num_kv_heads: int) -> int:
    """Splits of a decoded row's keys. A power of two; the same for rows and batches of any size."""
    return max(4, min(32, PROGRAMS // triton.next_power_of_2(num_kv_heads)))


@dataclass(frozen=True, slots=True)
class _Inputs:
    """The arguments of `paged_attention`."""

    query: Tensor
    key_cache: Tensor
    value_cache: Tensor
    block_tables: Tensor
    query_starts: Tensor
    context_lens: Tensor
    max_query_len: int
    scale: float
    window: int | None
    softcap: float | None
    splits_keys: bool


def _attend(inputs: _Inputs, query: Tensor, keys: Tensor, values: Tensor) -> Tensor:
    """One row: query [n, H, D], the last n of L positions; keys [L, Hkv, D]; values [L, Hkv, Dv]; in fp32."""
    num_keys, num_kv_heads, _ = keys.shape
    grouped = query.unflatten(1, (num_kv_heads, -1))
    scores = torch.einsum("nhgd,lhd->hgnl", grouped, keys) * inputs.scale
    if inputs.softcap is not None:
        scores = inputs.softcap * (scores / inputs.softcap).tanh()
    key = torch.arange(num_keys, device=query.device)
    position = key[num_keys - len(query) :, None]
    is_hidden = key > position
    if inputs.window is not None:
        is_hidden |= key <= position - inputs.window
    weights = scores.masked_fill(is_hidden, -torch.inf).softmax(-1)
    return torch.einsum("hgnl,lhd->nhgd", weights, values).flatten(1, 2)


def _reference(inputs: _Inputs) -> Tensor:
    query, block_size = inputs.query, inputs.key_cache.shape[1]
    out = query.new_zeros(*query.shape[:2], inputs.value_cache.shape[3])
    starts = inputs.query_starts.tolist()
    for row, context in enumerate(inputs.context_lens.tolist()):
        tokens = slice(starts[row], starts[row + 1])
        if not context or tokens.start == tokens.stop:
            continue
        blocks = inputs.block_tables[row, : -(-context // block_size)]
        keys, values = (
            cache.index_select(0, blocks).flatten(0, 1)[:context].float()
            for cache in (inputs.key_cache, inputs.value_cache)
        )
        out[tokens] = _attend(inputs, query[tokens].float(), keys, values).to(out.dtype)
    return out


# A row with one query is decoded: its keys are cut into chunks, one program folds a chunk for the heads of a
# group, and a second kernel merges the chunks in order. A row with several is prefilled: a program takes a
# tile of its queries, times the heads of a group, over all keys that they see. Which of the two a row gets,
# and where the cuts are, follows from the row alone; the grids follow from shapes alone.


@jit
def _gather(cache, stride_n, stride_s, block, offset, there, dim: tl.constexpr, padded_dim: tl.constexpr):
    """Keys or values [K, padded_dim] of one head, zeros where nothing is there."""
    column = tl.arange(0, padded_dim)
    inside = there[:, None]
    if dim != padded_dim:
        inside = inside & (column < dim)[None, :]
    return tl.load(
        cache + (block * stride_n + offset * stride_s)[:, None] + column[None, :], mask=inside, other=0.0
    )


@jit
def _fold(
    query, position, key, stop, top, total, out, table, key_cache, value_cache, key_stride_n, key_stride_s,
    value_stride_n, value_stride_s, gain: tl.constexpr, cap: tl.constexpr, window: tl.constexpr,
    block_size: tl.constexpr, dim: tl.constexpr, padded_dim: tl.constexpr, value_dim: tl.constexpr,
    padded_value_dim: tl.constexpr,
):  # fmt: skip
    """A softmax in progress, after the keys at positions `key` [K], of which those below `stop` exist.

    Of queries [M] at `position`: the largest score `top`, `total` = Σ 2^(score − top), and `out`, the sum of
    the values so weighted.
    """
    there = key < stop
    block, offset = tl.load(table + key // block_size, mask=there, other=0).to(tl.int64), key % block_size
    keys = _gather(key_cache, key_stride_n, key_stride_s, block, offset, there, dim, padded_dim)
    score = tl.dot(query, tl.trans(keys), input_precision="ieee") * gain
    if cap is not None:
        score = cap * (1.0 - 2.0 / (tl.exp2(score) + 1.0))
    is_seen = there[None, :] & (key[None, :] <= position[:, None])
    if window is not None:
        is_seen = is_seen & (key[None, :] > position[:, None] - window)
    score = tl.where(is_seen, score, float("-inf"))
    new_top = tl.maximum(top, tl.max(score, 1))
    origin = exponent_origin(new_top)
    weight, kept = tl.exp2(score - origin[:, None]), tl.exp2(top - origin)
    values = _gather(
        value_cache, value_stride_n, value_stride_s, block, offset, there, value_dim, padded_value_dim
    )
    out = tl.dot(weight.to(values.dtype), values, out * kept[:, None], input_precision="ieee")
    return new_top, total * kept + tl.sum(weight, 1), out


@jit
def _chunks(
    context, window: tl.constexpr, num_splits: tl.constexpr, min_chunk: tl.constexpr, block_n: tl.constexpr
):
    """The first key that a row's one query sees, and how many each split folds: whole tiles."""
    first = 0
    if window is not None:
        first = tl.maximum(context - window, 0)
    share = tl.cdiv(context - first, num_splits)
    return first, tl.maximum(tl.cdiv(share, block_n) * block_n, min_chunk)


@jit
def _decode(
    query, key_cache, value_cache, block_tables, query_starts, context_lens, sums, partial,
    query_stride_t, query_stride_h, table_stride, key_stride_n, key_stride_s, key_stride_h, value_stride_n,
    value_stride_s, value_stride_h,
    gain: tl.constexpr, cap: tl.constexpr, window: tl.constexpr, block_size: tl.constexpr,
    num_heads: tl.constexpr, group: tl.constexpr, dim: tl.constexpr, padded_dim: tl.constexpr,
    value_dim: tl.constexpr, padded_value_dim: tl.constexpr, num_splits: tl.constexpr,
    min_chunk: tl.constexpr, block_m: tl.constexpr, block_n: tl.constexpr,
):  # fmt: skip
    """One split of a row's keys, for the heads of a group: what `_fold` leaves, as partial [R, H, splits, Dv]
    and sums [R, H, splits, (top, total)]."""
    kv_head, split, row = tl.program_id(0), tl.program_id(1), tl.program_id(2).to(tl.int64)
    token, context = tl.load(query_starts + row), tl.load(context_lens + row)
    first, chunk = _chunks(context, window, num_splits, min_chunk, block_n)
    start = first + split * chunk
    if (tl.load(query_starts + row + 1) - token != 1) | (start >= context):
        return
    stop = tl.minimum(start + chunk, context)

    member, column, value_column = (
        tl.arange(0, block_m),
        tl.arange(0, padded_dim),
        tl.arange(0, padded_value_dim),
    )
    head = kv_head * group + member
    is_head = member < group
    q = tl.load(
        query + token.to(tl.int64) * query_stride_t + head[:, None] * query_stride_h + column[None, :],
        mask=is_head[:, None] & (column < dim)[None, :],
        other=0.0,
    )
    position = tl.full((block_m,), 0, tl.int32) + context - 1
    top, total = tl.full((block_m,), float("-inf"), tl.float32), tl.zeros((block_m,), tl.float32)
    out = tl.zeros((block_m, padded_value_dim), tl.float32)
    for key in range(start, stop, block_n):
        top, total, out = _fold(
            q, position, key + tl.arange(0, block_n), stop, top, total, out,
            block_tables + row * table_stride, key_cache + kv_head * key_stride_h,
            value_cache + kv_head * value_stride_h, key_stride_n, key_stride_s, value_stride_n,
            value_stride_s, gain, cap, None, block_size, dim, padded_dim, value_dim, padded_value_dim,
        )  # fmt: skip
    slot = (row * num_heads + head) * num_splits + split
    tl.store(sums + slot * 2, top, mask=is_head)
    tl.store(sums + slot * 2 + 1, total, mask=is_head)
    tl.store(
        partial + slot[:, None] * value_dim + value_column[None, :],
        out,
        mask=is_head[:, None] & (value_column < value_dim)[None, :],
    )


@jit
def _merge(
    sums, partial, query_starts, context_lens, out, window: tl.constexpr, num_heads: tl.constexpr,
    value_dim: tl.constexpr, padded_value_dim: tl.constexpr, num_splits: tl.constexpr,
    min_chunk: tl.constexpr, block_n: tl.constexpr,
):  # fmt: skip
    head, row = tl.program_id(0), tl.program_id(1).to(tl.int64)
    token, context = tl.load(query_starts + row), tl.load(context_lens + row)
    if tl.load(query_starts + row + 1) - token != 1:
        return
    first, chunk = _chunks(context, window, num_splits, min_chunk, block_n)
    split, column = tl.arange(0, num_splits), tl.arange(0, padded_value_dim)
    slot = (row * num_heads + head) * num_splits + split
    is_used = first + split * chunk < context
    top = tl.load(sums + slot * 2, mask=is_used, other=float("-inf"))
    weight = tl.exp2(top - exponent_origin(tl.max(top, 0)))
    total = tl.sum(weight * tl.load(sums + slot * 2 + 1, mask=is_used, other=0.0), 0)
    values = tl.load(
        partial + slot[:, None] * value_dim + column[None, :],
        mask=is_used[:, None] & (column < value_dim)[None, :],
        other=0.0,
    )
    value = tl.sum(weight[:, None] * values, 0) / tl.where(total > 0, total, 1.0)
    at = out + (token.to(tl.int64) * num_heads + head) * value_dim + column
    tl.store(at, value.to(out.dtype.element_ty), mask=column < value_dim)


@jit
def _row_of_tile(query_starts, num_rows, tile, tile_queries: tl.constexpr, block: tl.constexpr):
    """The row that a tile of queries belongs to. Row r's tiles begin at query_starts[r] // tile_queries + r,
    which leaves each row as many as it needs."""
    begun = 0
    for first in range(0, num_rows, block):
        row = first + tl.arange(0, block)
        start = tl.load(query_starts + row, mask=row < num_rows, other=0)
        begun += tl.sum(((start // tile_queries + row <= tile) & (row < num_rows)).to(tl.int32), 0)
    return begun - 1


@partial(jit, unspecialised=("num_rows",))
def _prefill(
    query, key_cache, value_cache, block_tables, query_starts, context_lens, result, num_rows,
    query_stride_t, query_stride_h, table_stride, key_stride_n, key_stride_s, key_stride_h, value_stride_n,
    value_stride_s, value_stride_h,
    gain: tl.constexpr, cap: tl.constexpr, window: tl.constexpr, block_size: tl.constexpr,
    num_heads: tl.constexpr, group: tl.constexpr, dim: tl.constexpr, padded_dim: tl.constexpr,
    value_dim: tl.constexpr, padded_value_dim: tl.constexpr, tile_queries: tl.constexpr,
    min_queries: tl.constexpr, search: tl.constexpr, block_m: tl.constexpr, block_n: tl.constexpr,
):  # fmt: skip
    """One tile of a row's queries for the heads of a group; the tile that sees most keys starts first."""
    kv_head, tile = tl.program_id(0), tl.num_programs(1) - 1 - tl.program_id(1)
    row = _row_of_tile(query_starts, num_rows, tile, tile_queries, search).to(tl.int64)
    begin, context = tl.load(query_starts + row), tl.load(context_lens + row)
    num_queries = tl.load(query_starts + row + 1) - begin
    first_query = (tile - (begin // tile_queries + row.to(tl.int32))) * tile_queries
    if (num_queries < min_queries) | (first_query >= num_queries):
        return

    member, column, value_column = (
        tl.arange(0, block_m),
        tl.arange(0, padded_dim),
        tl.arange(0, padded_value_dim),
    )
    index, head = first_query + member // group, kv_head * group + member % group
    is_query = (member < tile_queries * group) & (index < num_queries)
    token = (begin + index).to(tl.int64)
    q = tl.load(
        query + (token * query_stride_t + head * query_stride_h)[:, None] + column[None, :],
        mask=is_query[:, None] & (column < dim)[None, :],
        other=0.0,
    )
    position = context - num_queries + index
    start, stop = 0, tl.minimum(context - num_queries + first_query + tile_queries, context)
    if window is not None:
        oldest = tl.maximum(context - num_queries + first_query - window + 1, 0)
        start = oldest // block_n * block_n  # where a tile of keys begins does not depend on the queries
    top, total = tl.full((block_m,), float("-inf"), tl.float32), tl.zeros((block_m,), tl.float32)
    out = tl.zeros((block_m, padded_value_dim), tl.float32)
    for key in range(start, stop, block_n):
        top, total, out = _fold(
            q, position, key + tl.arange(0, block_n), stop, top, total, out,
            block_tables + row * table_stride, key_cache + kv_head * key_stride_h,
            value_cache + kv_head * value_stride_h, key_stride_n, key_stride_s, value_stride_n,
            value_stride_s, gain, cap, window, block_size, dim, padded_dim, value_dim, padded_value_dim,
        )  # fmt: skip
    out = out / tl.where(total > 0, total, 1.0)[:, None]
    tl.store(
        result + ((token * num_heads + head) * value_dim)[:, None] + value_column[None, :],
        out.to(result.dtype.element_ty),
        mask=is_query[:, None] & (value_column < value_dim)[None, :],
    )


def _launch(inputs: _Inputs) -> Tensor:
    query, keys, values = inputs.query, inputs.key_cache, inputs.value_cache
    tables, starts, contexts = inputs.block_tables, inputs.query_starts, inputs.context_lens
    assert query.stride(2) == keys.stride(3) == values.stride(3) == tables.stride(1) == 1
    num_tokens, num_heads, dim = query.shape
    num_rows, (_, block_size, num_kv_heads, value_dim) = len(contexts), values.shape
    group = num_heads // num_kv_heads
    padded_dim, padded_value_dim = (max(16, triton.next_power_of_2(size)) for size in (dim, value_dim))
    config = _config(max(padded_dim, padded_value_dim), query.dtype)
    gain, cap = inputs.scale * LOG2_E, None
    if inputs.softcap is not None:  # tanh(x) is 1 − 2 / (2^(2x · log2 e) + 1)
        gain, cap = 2 * gain / inputs.softcap, inputs.softcap * LOG2_E
    strides = (
        query.stride(0), query.stride(1), tables.stride(0), *keys.stride()[:3], *values.stride()[:3],
    )  # fmt: skip
    shape = {
        "num_heads": num_heads, "value_dim": value_dim, "padded_value_dim": padded_value_dim,
        "window": inputs.window,
    }  # fmt: skip
    both = shape | {
        "gain": gain, "cap": cap, "block_size": block_size, "group": group, "dim": dim,
        "padded_dim": padded_dim,
    }  # fmt: skip
    new = query.new_empty if inputs.max_query_len == 1 else query.new_zeros
    out = new(num_tokens, num_heads, value_dim)
    if inputs.max_query_len > 1 or not inputs.splits_keys:
        block_m = max(config.prefill_queries, triton.next_power_of_2(group))
        tile_queries = block_m // group
        _prefill[num_kv_heads, num_tokens // tile_queries + num_rows](
            query, keys, values, tables, starts, contexts, out, num_rows, *strides, **both,
            tile_queries=tile_queries, min_queries=2 if inputs.splits_keys else 1, search=SEARCH,
            block_m=block_m, block_n=config.prefill_keys, num_warps=config.prefill_warps,
            num_stages=config.prefill_stages,
        )  # fmt: skip
    if not inputs.splits_keys:
        return out
    num_splits = _num_splits(num_kv_heads)
    partial = query.new_empty(num_rows, num_heads, num_splits, value_dim, dtype=torch.float32)
    sums = partial.new_empty(num_rows, num_heads, num_splits, 2)
    cuts = {"num_splits": num_splits, "min_chunk": MIN_CHUNK, "block_n": config.decode_keys}
    _decode[num_kv_heads, num_splits, num_rows](
        query, keys, values, tables, starts, contexts, sums, partial, *strides, **both, **cuts,
        block_m=max(16, triton.next_power_of_2(group)), num_warps=config.decode_warps,
        num_stages=config.decode_stages,
    )  # fmt: skip
    _merge[num_heads, num_rows](sums, partial, starts, contexts, out, **shape, **cuts)
    return out


def paged_attention(
    query: Tensor,
    key_cache: Tensor,
    value_cache: Tensor,
    *,
    block_tables: Tensor,
    query_starts: Tensor,
    context_lens: Tensor,
    max_query_len: int,
    scale: float,
    window: int | None = None,
    softcap: float | None = None,
    splits_keys: bool = True,
    backend: str | None = None,
) -> Tensor:
    """Causal attention of the rows' new tokens over the rows' own keys and values, softmax in fp32.

    Row r's queries are tokens `query_starts[r]` to `query_starts[r + 1]`, the last of its `context_lens[r]`
    positions; their own keys are already in the cache. Query head h reads key head `h // (H / Hkv)`. In
    Triton a row's bits do not depend on the other rows, and those of a query not on how its row was chunked,
    but that a chunk of one query is decoded; see splits_keys.

    Args:
        query: [T, H, D]; heads and tokens may be strided.
        key_cache: [N, block_size, Hkv, D] in the query's dtype. value_cache: [N, block_size, Hkv, Dv]. What
            lies outside the rows' contexts is never used, NaN or not.
        block_tables: i32 or i64[R, ·], the cache blocks of each row in order; entries past the context may
            hold anything.
        query_starts: i32[R + 1], ascending from 0. Tokens past the last row give 0.
        max_query_len: at least every row's number of queries. If 1, there are as many tokens as rows.
        context_lens: i32[R], keys of each row, those of its new tokens included; at least its number of
            queries, or 0 for padding, whose outputs are 0.
        scale: of the dot products.
        window: a query sees the last `window` positions only, its own included.
        softcap: bounds the scaled products s to `softcap · tanh(s / softcap)`.
        splits_keys: share a single query's keys out between programs. False is slower there, and a query's
            bits then follow from its position and its keys alone.
        backend: see `choose_backend`.

    Returns:
        [T, H, Dv] in the query's dtype.
    """
    assert query.dtype == key_cache.dtype == value_cache.dtype
    assert max_query_len > 1 or len(query) == len(context_lens)
    inputs = _Inputs(
        query, key_cache, value_cache, block_tables, query_starts, context_lens, max_query_len, scale, window,
        softcap, splits_keys,
    )  # fmt: skip
    return _BACKENDS[choose_backend(query.device, backend)](inputs)


_BACKENDS = {"reference": _reference, "triton": _launch}
