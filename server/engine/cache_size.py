"""How many blocks the key/value cache gets."""

from __future__ import annotations

import logging
from collections.abc import Callable

from trimtab.server.engine.config import EngineConfig
from trimtab.server.engine.kv_cache import bytes_per_block
from trimtab.server.engine.policy import ModelError, Policy

logger = logging.getLogger(__name__)


def blocks_from_free_memory(
    *,
    total_bytes: int,
    free_bytes: int,
    activation_bytes: int,
    utilization: float,
    block_bytes: int,
) -> int:
    """Blocks that fit beside everything else when `utilization` of a device's memory may be in use.

    free_bytes: with the weights loaded, by whomever the rest is used. activation_bytes: what the largest
    step needs for a while. Never negative.
    """
    spare = free_bytes - activation_bytes - (1 - utilization) * total_bytes
    return max(int(spare // block_bytes), 0)


def resolve_num_blocks(config: EngineConfig, policy: Policy, measure: Callable[[int], int]) -> int:
    """Cache blocks: what fits the memory, at most what all sequences at full length could use.

    measure: blocks of so many bytes that a GPU's free memory holds; asked only where the configuration gives
    no number. Lowers the policy's max_model_len to what fits, where the user did not ask for a length.
    Raises ModelError when not even one sequence of the asked length fits.
    """
    block_bytes = bytes_per_block(policy.layers, config.block_size, policy.dtype)
    affordable = config.num_blocks
    if affordable is None and config.kv_cache_gib is not None:
        affordable = int(config.kv_cache_gib * 2**30) // block_bytes
    if affordable is None:
        affordable = measure(block_bytes)
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
