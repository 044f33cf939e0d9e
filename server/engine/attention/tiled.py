"""Paged attention of which no bit depends on the batch: every token on its own, over tiles of keys in order.

Under `strict` on a CPU. SDPA sums in an order that depends on how many keys and queries share a call; here
every call has one shape, and a tile that a token does not see adds exact zeros to what it has.
"""

from __future__ import annotations

import torch
from torch import Tensor

from trimtab.server.engine.attention.base import AttentionCall, PagedAttention
from trimtab.server.engine.batch import RowSpans, TokenInputs

TILE_KEYS = 64
LOWEST = torch.finfo(torch.float32).min  # stands for −inf where −inf − −inf could arise


class TiledAttention(PagedAttention):
    _tokens: TokenInputs
    _blocks: Tensor  # [T, tiles · blocks of a tile]
    _tile_blocks: int

    def prepare(self, tokens: TokenInputs, rows: RowSpans) -> None:
        size = self.cache.block_size
        self._tile_blocks = -(-TILE_KEYS // size)
        num_tiles = -(-max(rows.ends) // (self._tile_blocks * size))
        self._tokens = tokens
        tables = self.tables(tokens)[:, : num_tiles * self._tile_blocks]
        self._blocks = tables.index_select(0, tokens.slots)

    def attend(self, call: AttentionCall, queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        self.cache.store(call.layer, keys, values, self._tokens.cache_slots)
        num_tokens, kv_heads = keys.shape[:2]
        q = queries.reshape(num_tokens, kv_heads, -1, queries.shape[-1]).float() * call.scale
        top = q.new_full((*q.shape[:3], 1), LOWEST)
        total, out = torch.zeros_like(top), q.new_zeros(*q.shape[:3], values.shape[-1])
        for tile, blocks in enumerate(self._blocks.split(self._tile_blocks, 1)):
            tile_keys, tile_values = self.cache.gather(call.layer, blocks)  # [T, kv_heads, L, dim]
            scores = q @ tile_keys.float().transpose(-1, -2)  # [T, kv_heads, heads of one, L]
            if call.softcap is not None:
                scores = (scores / call.softcap).tanh() * call.softcap
            hidden = self._hidden(tile, tile_keys.shape[2], call.window)
            scores = scores.masked_fill(hidden, -torch.inf)
            new_top = torch.maximum(top, scores.amax(-1, keepdim=True))
            weights, rescale = (scores - new_top).exp(), (top - new_top).exp()
            total = total * rescale + weights.sum(-1, keepdim=True)
            out = out * rescale + weights @ tile_values.float()
            top = new_top
        return (out / total).flatten(1, 2).to(queries.dtype)

    def _hidden(self, tile: int, num_keys: int, window: int | None) -> Tensor:
        start = tile * self._tile_blocks * self.cache.block_size
        keys = torch.arange(start, start + num_keys, device=self._blocks.device)
        positions = self._tokens.positions[:, None]
        hidden = keys > positions
        if window is not None:
            hidden |= keys <= positions - window
        return hidden[:, None, None, :]
