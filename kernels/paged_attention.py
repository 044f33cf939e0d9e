"""Causal attention of packed query rows over keys and values in a paged cache."""

# mypy: allow-untyped-defs, allow-incomplete-defs

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from trimtab.kernels.dispatch import choose_backend


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
    backend: str | None = None,
) -> Tensor:
    """Causal attention of the rows' new tokens over the rows' own keys and values, softmax in fp32.

    Row r's queries are tokens `query_starts[r]` to `query_starts[r + 1]`, the last of its `context_lens[r]`
    positions; their own keys are already in the cache. Query head h reads key head `h // (H / Hkv)`.

    Args:
        query: [T, H, D]; heads and tokens may be strided.
        key_cache: [N, block_size, Hkv, D] in the query's dtype. value_cache: [N, block_size, Hkv, Dv]. What
            lies outside the rows' contexts is never used, NaN or not.
        block_tables: i32 or i64[R, ·], the cache blocks of each row in order; entries past the context may
            hold anything.
        query_starts: i32[R + 1], from 0 to T. max_query_len: at least every row's number of queries.
        context_lens: i32[R], keys of each row, those of its new tokens included; at least its number of
            queries, or 0 for padding, whose outputs are 0.
        scale: of the dot products.
        window: a query sees the last `window` positions only, its own included.
        softcap: bounds the scaled products s to `softcap · tanh(s / softcap)`.
        backend: see `choose_backend`.

    Returns:
        [T, H, Dv] in the query's dtype.
    """
    inputs = _Inputs(
        query, key_cache, value_cache, block_tables, query_starts, context_lens, max_query_len, scale, window,
        softcap,
    )  # fmt: skip
    return _BACKENDS[choose_backend(query.device, backend)](inputs)


_BACKENDS = {"reference": _reference}
