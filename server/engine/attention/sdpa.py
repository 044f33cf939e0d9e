"""Paged attention by torch's SDPA, which runs anywhere: the CPU's path.

Gathers each row's blocks and attends in groups of rows of similar length, so that a row never attends to
another's keys and pays for at most twice its own.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor

from trimtab.server.engine.attention.base import AttentionCall, PagedAttention
from trimtab.server.engine.batch import RowSpans, TokenInputs
from trimtab.server.engine.device_copy import index_tensor

SMALL_GROUP_KEYS = 128


@dataclass(slots=True)
class RowGroup:
    """Rows of one query length that attend together.

    tokens: [R · n] places in the packed batch, or None when the group is the whole batch in order.
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


class SdpaAttention(PagedAttention):
    _slots: Tensor
    _groups: Sequence[RowGroup]

    def prepare(self, tokens: TokenInputs, rows: RowSpans) -> None:
        grouped = group_rows(rows.num_tokens, rows.ends, self.cache.block_size)
        self._slots = tokens.cache_slots
        if len(grouped) == 1:
            self._groups = [self._whole_batch(tokens, rows)]
            return
        offsets = [0, *itertools.accumulate(rows.num_tokens)]
        self._groups = [self._group(members, offsets, tokens, rows) for members in grouped]

    def attend(self, call: AttentionCall, queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        self.cache.store(call.layer, keys, values, self._slots)
        if self._groups[0].tokens is None:
            return self._attend_group(call, queries, self._groups[0])
        out = queries.new_empty(*queries.shape[:2], values.shape[-1])
        for group in self._groups:
            assert group.tokens is not None
            attended = self._attend_group(call, queries.index_select(0, group.tokens), group)
            out.index_copy_(0, group.tokens, attended)
        return out

    def _whole_batch(self, tokens: TokenInputs, rows: RowSpans) -> RowGroup:
        num_rows, num_blocks = len(rows.slots), self._num_blocks(max(rows.ends))
        positions = tokens.positions.view(num_rows, -1)
        tables = self.tables(tokens)[:, :num_blocks]
        blocks = tables.index_select(0, tokens.slots[:: positions.shape[1]])
        return RowGroup(None, blocks, positions, self.cache.block_size, self.cache.dtype)

    def _group(
        self, members: Sequence[int], offsets: Sequence[int], tokens: TokenInputs, rows: RowSpans
    ) -> RowGroup:
        places = [place for row in members for place in range(offsets[row], offsets[row + 1])]
        index = index_tensor(places, self.state.device)
        slots = index_tensor([rows.slots[row] for row in members], self.state.device)
        num_blocks = self._num_blocks(max(rows.ends[row] for row in members))
        blocks = self.tables(tokens)[:, :num_blocks].index_select(0, slots)
        positions = tokens.positions.index_select(0, index).view(len(members), -1)
        return RowGroup(index, blocks, positions, self.cache.block_size, self.cache.dtype)

    def _num_blocks(self, num_keys: int) -> int:
        return -(-num_keys // self.cache.block_size)

    def _attend_group(
        self,
        call: AttentionCall,
        queries: Tensor,  # [R · n, heads, dim]
        group: RowGroup,
    ) -> Tensor:
        keys, values = self.cache.gather(call.layer, group.blocks)  # [R, kv_heads, L, dim]
        rows, n = group.query_positions.shape
        kv_heads = keys.shape[1]
        # Grouped queries ride on the query axis, so that keys and values are not repeated.
        q = queries.view(rows, n, kv_heads, -1, queries.shape[-1]).permute(0, 2, 3, 1, 4)
        repeats = q.shape[2]
        q = q.reshape(rows, kv_heads, repeats * n, -1)
        mask = group.mask(call.window)
        if n > 1:
            mask = mask.repeat(1, 1, repeats, 1)
        if call.softcap is None:
            out = F.scaled_dot_product_attention(q, keys, values, attn_mask=mask, scale=call.scale)
        else:
            scores = (q @ keys.transpose(-1, -2)).mul_(call.scale / call.softcap).tanh_().mul_(call.softcap)
            out = scores.add_(mask).softmax(-1, dtype=torch.float32).to(q.dtype) @ values
        out = out.view(rows, kv_heads, repeats, n, -1).permute(0, 3, 1, 2, 4)
        return out.reshape(rows * n, kv_heads * repeats, -1)


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
