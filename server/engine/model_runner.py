"""Runs the policy over one packed step and returns h at the asked positions."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from trimtab.server.engine.attention import PagedAttention
from trimtab.server.engine.batch import BatchBuilder, decode_buckets
from trimtab.server.engine.config import EngineConfig
from trimtab.server.engine.kv_cache import KVCache, num_blocks_within
from trimtab.server.engine.policy import ModelError, Policy
from trimtab.server.engine.scheduler import Step
from trimtab.server.engine.step_state import StepState

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Hidden:
    """h [K, d] at the asked positions of the step's rows, in order; logits [K, V] or None (see Policy)."""

    h: Tensor
    logits: Tensor | None

    def pick(self, indices: Sequence[int]) -> Hidden:
        if len(indices) == len(self.h):
            return self
        return Hidden(self.h[indices], None if self.logits is None else self.logits[indices])


def resolve_num_blocks(config: EngineConfig, policy: Policy) -> int:
    """Cache blocks: what fits the memory, at most what all sequences at full length could use.

    Lowers the policy's max_model_len to what fits, where the user did not ask for a length.
    Raises ModelError when not even one sequence of the asked length fits.
    """
    affordable = config.num_blocks or num_blocks_within(
        config.kv_cache_gib, policy.layers, config.block_size, policy.dtype
    )
    num_tokens = (affordable - 1) * config.block_size - 1
    if num_tokens < policy.max_model_len:
        if config.max_model_len is not None or num_tokens < config.block_size:
            raise ModelError(
                f"the key/value cache holds {max(num_tokens, 0)} tokens, fewer than one sequence of "
                f"{policy.max_model_len}; raise --kv-cache-gib or lower --max-model-len"
            )
        logger.warning(
            "the context is limited to %d of the model's %d tokens; raise --kv-cache-gib for more",
            num_tokens,
            policy.max_model_len,
        )
        policy.max_model_len = num_tokens
    per_sequence = -(-(policy.max_model_len + 1) // config.block_size)
    return min(affordable, config.max_num_seqs * per_sequence + 1)


class ModelRunner:
    def __init__(self, policy: Policy, config: EngineConfig, num_blocks: int, num_heads: int) -> None:
        self.policy = policy
        self.state = StepState(
            config.max_num_seqs, policy.max_model_len, config.block_size, num_heads, policy.device
        )
        self.cache = KVCache(policy.layers, num_blocks, config.block_size, policy.dtype, policy.device)
        self._attention = PagedAttention(self.cache)
        policy.use_attention(self._attention)
        buckets = decode_buckets(config.max_num_seqs) if config.padding == "buckets" else ()
        self._batches = BatchBuilder(self.state, config.max_num_batched_tokens, buckets, policy.dtype)

    @torch.inference_mode()
    def run(self, step: Step) -> Hidden:
        """Run all rows of a step whose admitted choices are already in the step state."""
        self.cache.copy_blocks(step.copies)
        self.state.sync_blocks(row.lane for row in step.rows)
        batch = self._batches.build(step)
        self._attention.plan = batch.plan
        h, logits = self.policy.forward(batch.input_ids, batch.positions, batch.output_indices)
        return Hidden(h, logits)
