"""Attention function: what a model calls behind transformers' AttentionInterface, and what it refuses.

How packed rows attend over the paged cache is one of ATTENTIONS (see attentions.py), chosen once.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from trimtab.server.engine.batch import RowSpans, TokenInputs
from trimtab.server.engine.kv_cache import KVCache
from trimtab.server.engine.step_state import StepState

_HARMLESS = frozenset(
    {
        "position_ids",
        "cache_position",
        "use_cache",
        "output_attentions",
        "output_hidden_states",
        "cu_seq_lens_q",
        "sliding_window",  # the layer's own is known, see attention_probe
    }
)


class UnsupportedAttentionError(Exception):
    """The model asks its attention for something that the engine does not implement."""


@dataclass(frozen=True, slots=True)
class AttentionCall:
    """What a layer asks for besides its tensors. window: see LayerShape."""

    layer: int
    scale: float
    window: int | None
    softcap: float | None


class PagedAttention(ABC):
    """Stores a step's new keys and values in the cache and attends over it. `prepare` begins each step."""

    def __init__(self, cache: KVCache, state: StepState) -> None:
        self.cache, self.state = cache, state

    @abstractmethod
    def prepare(self, tokens: TokenInputs, rows: RowSpans) -> None:
        """Work out what all layers of the step share."""

    def tables(self, tokens: TokenInputs) -> Tensor:
        """Block tables by slot, [slots, N]."""
        return self.state.block_tables if tokens.block_tables is None else tokens.block_tables

    @abstractmethod
    def attend(self, call: AttentionCall, queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        """queries [T, heads, dim]; keys, values [T, kv_heads, ·] of the same tokens → [T, heads, ·]."""

    def __call__(
        self,
        module: torch.nn.Module,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attention_mask: Tensor | None,
        scaling: float | None = None,
        dropout: float = 0.0,
        softcap: float | None = None,
        **kwargs: Any,
    ) -> tuple[Tensor, None]:
        """query [1, heads, T, dim], key and value [1, kv_heads, T, dim] → [1, T, heads, value_dim].

        The window is the layer's, not the call's: some models put it into their mask alone."""
        check_attention_call(module, attention_mask, dropout, kwargs)
        scale = scaling if scaling is not None else query.shape[-1] ** -0.5
        layer: int = module.layer_idx  # type: ignore[assignment]
        call = AttentionCall(layer, scale, self.cache.windows[layer], softcap)
        queries, keys, values = (x[0].transpose(0, 1) for x in (query, key, value))
        # Contiguous, as transformers' own are: some models view it.
        return self.attend(call, queries, keys, values)[None].contiguous(), None


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
