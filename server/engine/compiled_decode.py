"""Decode steps on a CPU as one graph that TorchInductor compiles: a small step is mostly calls.

Weights are frozen into the graph, so that oneDNN packs them and products that share an input become one, and
attention reads keys and values where they lie in the cache instead of gathering them first.
"""

from __future__ import annotations

import itertools
import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface

from trimtab.guidance.errors import ModelError
from trimtab.kernels.compiled_draw import CompiledDraw
from trimtab.kernels.dispatch import MIN_SIZE, compile_unguarded, compiler_settings
from trimtab.server.engine.attention.base import check_attention_call
from trimtab.server.engine.config import EngineConfig
from trimtab.server.engine.kv_cache import KVCache, LayerShape
from trimtab.server.engine.policy import ServedPolicy

logger = logging.getLogger(__name__)

MIN_PARAMETERS = 10_000_000  # a smaller policy has answered most users before it is compiled
# Layers are unrolled: on two cores 8 take 25 s, 45 before Inductor knows them, and 30 take four minutes.
MAX_LAYERS = 8
SHORT_CONTEXT = 128
_names = itertools.count()


@dataclass(frozen=True, slots=True)
class DecodeInputs:
    """R rows of one token. positions, cache_slots: [R]. block_tables: [R, N]. keys, values: see KVCache."""

    positions: Tensor
    cache_slots: Tensor
    block_tables: Tensor
    keys: Sequence[Tensor]
    values: Sequence[Tensor]


class _DecodeAttention:
    """Attention over the cache of one token a row, in code that a compiler fuses.

    transformers keeps it for good, so it holds on to nothing of a step. step: set while tracing.
    """

    def __init__(self, layers: Sequence[LayerShape], block_size: int) -> None:
        self._windows = [layer.window for layer in layers]
        self._block_size = block_size
        self.step: DecodeInputs | None = None

    def __call__(
        self,
        module: nn.Module,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attention_mask: Tensor | None,
        scaling: float | None = None,
        dropout: float = 0.0,
        softcap: float | None = None,
        **kwargs: Any,
    ) -> tuple[Tensor, None]:
        """query [1, heads, R, dim], key and value [1, kv_heads, R, ·] → [1, R, heads, value_dim]."""
        check_attention_call(module, attention_mask, dropout, kwargs)
        step = self.step
        layer: int = module.layer_idx  # type: ignore[assignment]
        assert step is not None
        key_cache, value_cache = step.keys[layer], step.values[layer]
        key_cache.flatten(0, 1).index_copy_(0, step.cache_slots, key[0].transpose(0, 1))
        value_cache.flatten(0, 1).index_copy_(0, step.cache_slots, value[0].transpose(0, 1))
        num_rows, num_blocks = step.block_tables.shape
        kv_heads, dim = key_cache.shape[2:]
        num_keys = num_blocks * self._block_size
        # Written by an indexed copy, as keys are: else rotary is worked out anew for every key.
        rotated = torch.empty_like(query[0].transpose(0, 1)).index_copy_(
            0, torch.arange(num_rows), query[0].transpose(0, 1)
        )
        queries = rotated.reshape(num_rows, 1, kv_heads, -1, dim)
        keys = key_cache[step.block_tables].reshape(num_rows, num_keys, kv_heads, 1, dim)
        values = value_cache[step.block_tables].reshape(num_rows, num_keys, kv_heads, 1, -1)
        scale = dim**-0.5 if scaling is None else scaling
        scores = (queries * keys).sum(-1) * scale  # [R, L, kv_heads, group]
        if softcap is not None:
            scores = torch.tanh(scores / softcap) * softcap
        places = torch.arange(num_keys)[None, :, None, None]
        newest = step.positions[:, None, None, None]
        is_hidden = places > newest
        window = self._windows[layer]
        if window is not None:
            is_hidden = is_hidden | (places <= newest - window)
        weights = torch.softmax(scores.masked_fill(is_hidden, -torch.inf), 1)
        out = (weights.unsqueeze(-1) * values).sum(1)  # [R, kv_heads, group, value_dim]
        return out.reshape(1, num_rows, -1, values.shape[-1]), None


class CompiledDecode:
    """The body of a policy, with a linear tail, for steps of single tokens; and the draw.

    Raises RuntimeError where it cannot be compiled: its code defies tracing, or there is no C++ compiler.
    """

    def __init__(self, policy: ServedPolicy, block_size: int) -> None:
        self._body, self._block_size = policy.model.base_model, block_size
        self._attention = _DecodeAttention(policy.layers, block_size)
        name = f"trimtab_decode_{next(_names)}"
        AttentionInterface.register(name, self._attention)
        policy.use_attention(name)
        self._forward = self._compile(policy.layers)
        self.draw = CompiledDraw(policy.vocab_size)

    @staticmethod
    def suits(ends: Sequence[int]) -> bool:
        """Whether rows with so many keys should run together: each pays for as many as the longest has."""
        longest = max(ends)
        return longest <= SHORT_CONTEXT or longest * len(ends) <= 2 * sum(ends)

    def run(
        self, input_ids: Tensor, positions: Tensor, cache_slots: Tensor, block_tables: Tensor, cache: KVCache
    ) -> Tensor:
        """h [≥ R, d] of rows of one token each, whose keys and values go to the cache.

        input_ids, positions, cache_slots: i64[R]; block_tables: i64[R, N], with blocks that exist throughout.
        """
        assert cache.block_size == self._block_size
        num_rows, num_blocks = block_tables.shape
        if num_rows < MIN_SIZE:  # the same row twice writes the same keys twice
            input_ids, positions, cache_slots = (
                x.expand(MIN_SIZE).contiguous() for x in (input_ids, positions, cache_slots)
            )
        shape = max(num_rows, MIN_SIZE), max(num_blocks, MIN_SIZE)
        tables = block_tables.expand(shape).contiguous()
        h: Tensor = self._forward(input_ids, positions, cache_slots, tables, cache.keys, cache.values)
        return h

    def _compile(self, layers: Sequence[LayerShape]) -> Callable[..., Tensor]:
        forward = compile_unguarded(self._trace)
        # Sizes that vary are all different here: equal ones would be taken for one and the same.
        num_rows, num_blocks, width = 31, 41, 37
        device, index = torch.device("cpu"), torch.zeros(num_rows, dtype=torch.long)
        cache = KVCache(layers, num_blocks, self._block_size, torch.float32, device)
        inputs = (index, index.clone(), index.clone(), torch.zeros(num_rows, width, dtype=torch.long))
        for tensor in (*inputs, *cache.keys, *cache.values):
            torch._dynamo.mark_dynamic(tensor, 0)
        torch._dynamo.mark_dynamic(inputs[-1], 1)
        with compiler_settings(freezing=True, cpp_wrapper=True, cpp__enable_concat_linear=True):
            forward(*inputs, cache.keys, cache.values)
        return forward

    def _trace(
        self,
        input_ids: Tensor,
        positions: Tensor,
        cache_slots: Tensor,
        block_tables: Tensor,
        keys: Sequence[Tensor],
        values: Sequence[Tensor],
    ) -> Tensor:
        self._attention.step = DecodeInputs(positions, cache_slots, block_tables, keys, values)
        out = self._body(input_ids=input_ids[None], position_ids=positions[None], use_cache=False)
        self._attention.step = None
        h: Tensor = out[0][0]
        return h


def _obstacle(policy: ServedPolicy) -> str | None:
    if not policy.has_linear_tail:
        return f"the logits of '{policy.name}' are not h·Wᵀ alone"
    if policy.dtype != torch.float32:
        return f"'{policy.name}' is served in {policy.dtype}, and only float32 is compiled"
    return None


def _pays(policy: ServedPolicy) -> bool:
    """Whether it is worth its wait to somebody who did not ask for it."""
    return policy.model.num_parameters() >= MIN_PARAMETERS and len(policy.layers) <= MAX_LAYERS


def compile_decode(policy: ServedPolicy, config: EngineConfig) -> CompiledDecode | None:
    """What a resolved configuration asks for; under "auto" None where it does not pay or cannot be had.

    Raises ModelError where `compile` is "on" and cannot be had.
    """
    if config.compile == "off":
        return None
    obstacle = _obstacle(policy)
    if config.compile == "auto" and (obstacle or not _pays(policy)):
        return None
    if obstacle:
        raise ModelError(f"--compile on: {obstacle}; leave it auto")
    log = logger.warning if len(policy.layers) > MAX_LAYERS else logger.info  # asked for, and a long wait
    log("compiling the decode step of %s: some %d s on two cores", policy.name, 8 * len(policy.layers))
    start = time.perf_counter()
    try:
        compiled = CompiledDecode(policy, config.block_size)
    except RuntimeError as error:
        cause = getattr(error, "inner_exception", error)
        reason = f"{type(cause).__name__}: {str(cause).strip()}".split("\n", 1)[0].rstrip(": ")
        if config.compile == "on":
            raise ModelError(
                f"--compile on: the decode step of '{policy.name}' cannot be compiled ({reason}); is there a "
                "C++ compiler? leave --compile auto to do without"
            ) from error
        logger.warning("%s decodes without being compiled, and slower: %s", policy.name, reason)
        return None
    log("compiled in %.0f s", time.perf_counter() - start)
    return compiled
