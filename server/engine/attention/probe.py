"""Layers as the model itself defines them: cache sizes and windows, learned from a run over two tokens.

During the run the model's attention and its mask builder are ours and record. What a layer hides is a rule on
positions, so it can be held against what paged attention hides at any length, for the price of two tokens.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel

from trimtab.server.engine.attention.base import UnsupportedAttentionError, check_attention_call
from trimtab.server.engine.kv_cache import LayerShape

LAYER_KINDS = frozenset({"full_attention", "sliding_attention"})
NUM_DRAWN = 64
_names = itertools.count()

MaskRule = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]
"""Whether a query may see a key, from indices of batch, head, query and key that broadcast."""


@dataclass(slots=True)
class _Recorder:
    """attend and build_mask stand in for the model's own. shapes: by layer."""

    longest: int
    masks: list[tuple[Tensor, MaskRule]] = field(default_factory=list)
    windows: dict[int, int | None] = field(default_factory=dict)
    shapes: dict[int, LayerShape] = field(default_factory=dict)

    def build_mask(
        self, *, batch_size: int, q_length: int, kv_length: int, mask_function: MaskRule, **kwargs: Any
    ) -> Tensor:
        device, dtype = kwargs.get("device", "cpu"), kwargs.get("dtype", torch.float32)
        mask = torch.zeros(batch_size, 1, q_length, 1, device=device, dtype=dtype).expand(
            -1, -1, -1, kv_length
        )
        self.masks.append((mask, mask_function))
        return mask

    def attend(
        self,
        module: nn.Module,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attention_mask: Tensor | None,
        dropout: float = 0.0,
        scaling: float | None = None,
        sliding_window: int | None = None,
        softcap: float | None = None,
        **kwargs: Any,
    ) -> tuple[Tensor, None]:
        check_attention_call(module, None, dropout, kwargs)
        name, layer = type(module).__name__, getattr(module, "layer_idx", None)
        if not isinstance(layer, int):
            raise UnsupportedAttentionError(f"{name} has no layer_idx")
        if layer in self.shapes:
            raise UnsupportedAttentionError(f"{name} attends more than once in layer {layer}")
        window = self._window(name, attention_mask)
        self.shapes[layer] = LayerShape(key.shape[1], key.shape[3], value.shape[3], window)
        return value.new_zeros(1, query.shape[2], query.shape[1], value.shape[3]), None

    def _window(self, name: str, mask: Tensor | None) -> int | None:
        for index, (built, rule) in enumerate(self.masks):
            if mask is not None and _is_unchanged(mask, built):
                if index not in self.windows:
                    self.windows[index] = window_of(rule, self.longest, name, built.device)
                return self.windows[index]
        if mask is None:
            raise UnsupportedAttentionError(f"{name} gets no mask from transformers' mask builder")
        raise UnsupportedAttentionError(f"{name} builds an attention mask of its own")


def _is_unchanged(mask: Tensor, built: Tensor) -> bool:
    """A view of all of it will do, as slices that keep everything are."""
    return mask.shape == built.shape and mask.data_ptr() == built.data_ptr() and not bool(mask.any())


def probe_layers(model: PreTrainedModel, longest: int) -> dict[int, LayerShape]:
    """The attention layers of a model for sequences of up to `longest` tokens.

    Leaves the model with eager attention. Raises UnsupportedAttentionError for a layer whose
    attention paged attention cannot do at every one of these lengths.
    """
    _refuse_by_config(model.config.get_text_config())
    recorder = _Recorder(longest)
    name = f"trimtab_probe_{next(_names)}"
    AttentionInterface.register(name, recorder.attend)
    AttentionMaskInterface.register(name, recorder.build_mask)
    model.set_attn_implementation(name)
    ids, positions = torch.tensor([[[0, 0]], [[0, 1]]], device=model.device)
    # Of full length, so that rules on what a token is cover every position.
    every = torch.ones(1, longest, dtype=torch.long, device=model.device)
    try:
        with torch.inference_mode():
            model(input_ids=ids, attention_mask=every, position_ids=positions, use_cache=False)
    finally:
        model.set_attn_implementation("eager")
    return recorder.shapes


def _refuse_by_config(config: Any) -> None:
    kinds = getattr(config, "layer_types", None) or getattr(config, "layers_block_type", None) or ()
    others = [str(kind) for kind in kinds if kind not in LAYER_KINDS]
    if others:
        raise UnsupportedAttentionError(
            f"only {len(kinds) - len(others)} of its {len(kinds)} layers have full or sliding attention; "
            f"layers of type {', '.join(sorted(set(others)))} cannot be served"
        )
    if getattr(config, "attn_temperature_tuning", False):
        raise UnsupportedAttentionError(
            "it scales attention by a token's place in the batch, not its position (attn_temperature_tuning)"
        )


def window_of(rule: MaskRule, longest: int, name: str, device: torch.device | str = "cpu") -> int | None:
    """The sliding window that a causal mask has, None for one that hides no past position.

    Raises UnsupportedAttentionError with `name` where the rule is another one anywhere that is looked at.
    """
    every = torch.arange(longest, device=device)
    seen = _sees(rule, name, every[-1:, None], every[None])[0]
    window = None if bool(seen.all()) else int(seen.sum())
    for queries, keys in _samples(longest, window or longest, device):
        wanted = keys <= queries
        if window is not None:
            wanted &= keys > queries - window
        _hold_equal(_sees(rule, name, queries, keys), wanted, queries, keys, name)
    return window


def _hold_equal(seen: Tensor, wanted: Tensor, queries: Tensor, keys: Tensor, name: str) -> None:
    wrong = (seen != wanted).nonzero()
    if len(wrong) == 0:
        return
    row, column = wrong[0].tolist()
    query, key = int(queries[row, 0]), int(keys.expand_as(seen)[row, column])
    difference = f"shows position {key} to" if seen[row, column] else f"hides position {key} from"
    raise UnsupportedAttentionError(
        f"the mask of {name} is neither causal nor a sliding window: it {difference} a token at {query}"
    )


def _sees(rule: MaskRule, name: str, queries: Tensor, keys: Tensor) -> Tensor:
    first = torch.zeros((), dtype=torch.long, device=queries.device)
    try:
        seen = rule(first, first, queries, keys)
    except Exception as error:  # whatever a rule of the model's own making runs into
        raise UnsupportedAttentionError(f"the mask of {name} depends on more than positions") from error
    return seen.bool().expand(torch.broadcast_shapes(queries.shape, keys.shape))


def _samples(longest: int, window: int, device: torch.device | str) -> list[tuple[Tensor, Tensor]]:
    """Queries [Q, 1] and keys [1 | Q, K]: some queries with all keys, and many with keys where a rule may
    change: nearby, at the window's edge, at powers of two, and anywhere."""
    generator = torch.Generator().manual_seed(0)
    drawn = torch.randint(longest, (NUM_DRAWN,), generator=generator).tolist()
    powers = [1 << i for i in range(longest.bit_length())]
    edges = sorted({edge + i for edge in (0, window, 2 * window, *powers) for i in (-1, 0, 1)})
    queries = torch.tensor(sorted({q for q in (*edges, *drawn, longest - 1) if 0 <= q < longest}))[:, None]
    keys = torch.cat(
        [queries - torch.tensor(edges), torch.tensor([*edges, *drawn]).expand(len(queries), -1)], 1
    ).clamp(0, longest - 1)
    every = torch.arange(longest)[None]
    few = torch.tensor([longest - 1, longest // 2, *drawn[:2]])[:, None]
    return [(few.to(device), every.to(device)), (queries.to(device), keys.to(device))]
