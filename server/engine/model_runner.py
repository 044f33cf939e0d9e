"""Runs the policy over one packed step and returns h at the asked positions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from trimtab.server.engine.attention import PagedAttention
from trimtab.server.engine.batch import BatchBuilder, decode_buckets
from trimtab.server.engine.config import EngineConfig
from trimtab.server.engine.kv_cache import KVCache, num_blocks_within
from trimtab.server.engine.lane import Choice, Lane
from trimtab.server.engine.policy import ModelError, Policy
from trimtab.server.engine.scheduler import Step
from trimtab.server.engine.step_state import StepState


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

    Raises ModelError when not even one sequence of full length fits.
    """
    per_sequence = -(-(policy.max_model_len + 1) // config.block_size)
    affordable = config.num_blocks or num_blocks_within(
        config.kv_cache_gib, policy.layers, config.block_size, policy.dtype
    )
    if affordable < per_sequence + 1:
        raise ModelError(
            f"the key/value cache holds {max(affordable - 1, 0) * config.block_size} tokens, fewer than one "
            f"sequence of {policy.max_model_len}; raise --kv-cache-gib or lower --max-model-len"
        )
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

    def admit(self, choice: Choice, seed: int, head_weights: list[float], spent_kl: float) -> None:
        self.state.admit(choice, seed, head_weights, spent_kl)

    def rewrite_tokens(self, lane: Lane) -> None:
        self.state.rewrite_tokens(lane)
