"""Paged attention by our Triton kernels: a GPU's path, which needs nothing of the host in a decode step."""

from __future__ import annotations

import itertools
from typing import Any

import torch
from torch import Tensor

from trimtab.kernels.dispatch import choose_backend
from trimtab.kernels.paged_attention import paged_attention
from trimtab.kernels.store_kv import rope_store, store_kv
from trimtab.server.engine.attention.base import AttentionCall, PagedAttention
from trimtab.server.engine.batch import RowSpans, TokenInputs
from trimtab.server.engine.device_copy import index_tensor
from trimtab.server.engine.kv_cache import KVCache
from trimtab.server.engine.step_state import StepState


class TritonAttention(PagedAttention):
    """In a step where every row is one token all inputs follow from the static buffers, on the device.

    is_strict: a token's bits do not depend on whether it decodes or is one of a chunk, which is slower.
    Raises RuntimeError where Triton cannot run.
    """

    _slots: Tensor
    _block_tables: Tensor
    _query_starts: Tensor
    _context_lens: Tensor
    _max_query_len: int

    def __init__(self, cache: KVCache, state: StepState, is_strict: bool = False) -> None:
        super().__init__(cache, state)
        choose_backend(state.device, "triton")
        self._splits_keys = not is_strict
        self._row_starts = torch.arange(state.num_slots + 1, dtype=torch.int32, device=state.device)

    def prepare(self, tokens: TokenInputs, rows: RowSpans) -> None:
        if rows.are_single and len(rows.slots) < len(self._row_starts):
            self.prepare_decode(tokens)
            return
        num_rows = len(rows.slots)
        starts = [0, *itertools.accumulate(rows.num_tokens)]
        arrived = index_tensor([*rows.slots, *starts, *rows.ends], self.state.device)
        slots, query_starts, ends = arrived.split([num_rows, num_rows + 1, num_rows])
        self._slots = tokens.cache_slots
        self._block_tables = self.tables(tokens).index_select(0, slots)
        self._query_starts, self._context_lens = query_starts.int(), ends.int()
        self._max_query_len = max(rows.num_tokens)

    def prepare_decode(self, tokens: TokenInputs) -> None:
        """`prepare` for rows of one token each, from what is on the device alone."""
        self._slots = tokens.cache_slots
        self._block_tables = self.tables(tokens).index_select(0, tokens.slots)
        self._query_starts = self._row_starts[: len(tokens.slots) + 1]
        self._context_lens = (tokens.positions + 1).int()
        self._max_query_len = 1

    def attend(self, call: AttentionCall, queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        key_cache, value_cache = self.cache.keys[call.layer], self.cache.values[call.layer]
        store_kv(keys, values, self._slots, key_cache, value_cache, backend="triton")
        return self._attend(call, queries)

    def rotate_and_attend(self, module: Any, qkv: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        """For `fuse_layers`: qkv [T, (H + 2 Hkv) · D], not rotated yet; cos, sin [T, D] → [T, H, Dv]."""
        layer: int = module.layer_idx
        key_cache, value_cache = self.cache.keys[layer], self.cache.values[layer]
        queries = rope_store(qkv, cos, sin, self._slots, key_cache, value_cache, backend="triton")
        call = AttentionCall(layer, module.scaling, self.cache.windows[layer], None)
        return self._attend(call, queries)

    def _attend(self, call: AttentionCall, queries: Tensor) -> Tensor:
        return paged_attention(
            queries,
            self.cache.keys[call.layer],
            self.cache.values[call.layer],
            block_tables=self._block_tables,
            query_starts=self._query_starts,
            context_lens=self._context_lens,
            max_query_len=self._max_query_len,
            scale=call.scale,
            window=call.window,
            softcap=call.softcap,
            splits_keys=self._splits_keys,
            backend="triton",
        )
