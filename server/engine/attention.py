"""Attention of packed rows over the paged cache, behind transformers' AttentionInterface.

The reference runs anywhere: it gathers each row's blocks and calls SDPA on groups of rows of similar
length, so that a row never attends to another's keys and pays for at most twice its own.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from trimtab.server.engine.kv_cache import KVCache

SMALL_GROUP_KEYS = 128
_HARMLESS = frozenset(
    {
        "position_ids",
        "cache_position",
        "use_cache",
        "output_attentions",
        "output_hidden_states",
        "cu_seq_lens_q",
    }
)


class UnsupportedAttentionError(Exception):
    """The model asks its attention for something that the engine does not implement."""


@dataclass(slots=True)
class RowGroup:
    """Rows of one query length that attend together.

    tokens: [R · n] positions in the packed batch, or None when the group is the whole batch in order.
    blocks: [R, N] block tables, padded with blocks that the mask hides.
    query_positions: [R, n] positions of the queries in their sequences.
    """

    tokens: Tensor | None
    blocks: Tensor
    query_positions: Tensor
    block_size: int
    dtype: torch.dtype
    _masks: dict[int | None, Tensor] = field(default_factory=dict)

    def mask(self, window: int | None) -> Tensor:
        """Additive [R, 1, n, N · block_size]: key ≤ query, and within the sliding window if there is one."""
        if window not in self._masks:
            keys = torch.arange(self.blocks.shape[1] * self.block_size, device=self.blocks.device)
            queries = self.query_positions[:, None, :, None]
            is_hidden = keys > queries
            if window is not None:
                is_hidden |= keys <= queries - window
            mask = torch.zeros(is_hidden.shape, dtype=self.dtype, device=keys.device)
            self._masks[window] = mask.masked_fill_(is_hidden, -torch.inf)
        return self._masks[window]


@dataclass(slots=True)
class AttentionPlan:
    """Where one step's tokens are stored and what they attend to. slots: [T] flat cache slots."""

    slots: Tensor
    groups: Sequence[RowGroup]


class PagedAttention:
    """The attention function that a model calls; the runner sets `plan` before each forward pass."""

    def __init__(self, cache: KVCache) -> None:
        self.cache = cache
        self.plan: AttentionPlan | None = None

    def __call__(
        self,
        module: torch.nn.Module,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attention_mask: Tensor | None,
        scaling: float | None = None,
        dropout: float = 0.0,
        sliding_window: int | None = None,
        softcap: float | None = None,
        **kwargs: Any,
    ) -> tuple[Tensor, None]:
        """query [1, heads, T, dim], key and value [1, kv_heads, T, dim] → [1, T, heads, value_dim]."""
        check_attention_call(module, attention_mask, dropout, kwargs)
        assert self.plan is not None
        layer: int = module.layer_idx  # type: ignore[assignment]
        keys, values = key[0].transpose(0, 1), value[0].transpose(0, 1)  # [T, kv_heads, dim]
        self.cache.store(layer, keys, values, self.plan.slots)
        queries = query[0].transpose(0, 1)  # [T, heads, dim]
        scale = scaling if scaling is not None else query.shape[-1] ** -0.5
        if len(self.plan.groups) == 1 and self.plan.groups[0].tokens is None:
            return self._attend(layer, queries, self.plan.groups[0], scale, sliding_window, softcap)[
                None
            ], None
        out = queries.new_empty(*queries.shape[:2], value.shape[-1])
        for group in self.plan.groups:
            assert group.tokens is not None
            picked = queries.index_select(0, group.tokens)
            attended = self._attend(layer, picked, group, scale, sliding_window, softcap)
            out.index_copy_(0, group.tokens, attended)
        return out[None], None

    def _attend(
        self,
        layer: int,
        queries: Tensor,  # [R · n, heads, dim]
        group: RowGroup,
        scale: float,
        window: int | None,
        softcap: float | None,
    ) -> Tensor:
        keys, values = self.cache.gather(layer, group.blocks)  # [R, kv_heads, L, dim]
        rows, n = group.query_positions.shape
        kv_heads = keys.shape[1]
        # Grouped queries ride on the query axis, so that keys and values are not repeated.
        q = queries.view(rows, n, kv_heads, -1, queries.shape[-1]).permute(0, 2, 3, 1, 4)
        repeats = q.shape[2]
        q = q.reshape(rows, kv_heads, repeats * n, -1)
        mask = group.mask(window)
        if n > 1:
            mask = mask.repeat(1, 1, repeats, 1)
        if softcap is None:
            out = F.scaled_dot_product_attention(q, keys, values, attn_mask=mask, scale=scale)
        else:
            scores = (q @ keys.transpose(-1, -2)).mul_(scale / softcap).tanh_().mul_(softcap)
            out = scores.add_(mask).softmax(-1, dtype=torch.float32).to(q.dtype) @ values
        out = out.view(rows, kv_heads, repeats, n, -1).permute(0, 3, 1, 2, 4)
        return out.reshape(rows * n, kv_heads * repeats, -1)


def check_attention_call(
    module: torch.nn.Module, attention_mask: Tensor | None, dropout: float, kwargs: dict[str, Any]
) -> None:
    """Raise UnsupportedAttentionError for whatever paged attention would silently get wrong."""
    name = type(module).__name__
    if attention_mask is not None:
        raise UnsupportedAttentionError(f"{name} builds an attention mask of its own")
    if dropout:
        raise UnsupportedAttentionError(f"{name} applies attention dropout while serving")
    if not (kwargs.pop("is_causal", True) and getattr(module, "is_causal", True)):
        raise UnsupportedAttentionError(f"{name} is not causal")
    unknown = sorted(k for k, v in kwargs.items() if v is not None and v is not False and k not in _HARMLESS)
    if unknown:
        raise UnsupportedAttentionError(f"{name} passes {', '.join(unknown)}, which paged attention ignores")


def group_rows(num_tokens: Sequence[int], ends: Sequence[int], block_size: int) -> list[list[int]]:
    """Which rows attend together: prefill rows alone, decode rows with others of at most twice their length
    (all short ones together).

    num_tokens: query tokens of each row. ends: keys of each row, its own tokens included.
    """
    groups = [[row] for row, n in enumerate(num_tokens) if n > 1]
    decoding = sorted((row for row, n in enumerate(num_tokens) if n == 1), key=lambda row: -ends[row])
    longest = 0
    for row in decoding:
        if longest and (longest <= SMALL_GROUP_KEYS or 2 * ends[row] >= longest):
            groups[-1].append(row)
        else:
            groups.append([row])
            longest = -(-ends[row] // block_size) * block_size
    for group in groups:
        group.sort()
    return groups
