"""Engine configuration: frozen, validated once; "auto" is resolved by functions that return new values."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal


@dataclass(frozen=True, slots=True)
class EngineConfig:
    """How one engine serves one policy.

    model: folder or hub id of a causal LM.
    heads: head folders to load.
    dtype: "auto" is float32 on CPU and the checkpoint's own on a GPU.
    device: "auto" is cuda where there is one, else cpu.
    max_model_len: tokens of prompt and reply together; None takes the model's own limit, or what the
    key/value cache can hold.
    max_num_seqs: sequences that run at the same time.
    max_num_batched_tokens: token budget of one step; longer prompts are prefilled in chunks.
    block_size: tokens in one block of the key/value cache.
    kv_cache_gib: memory for keys and values.
    num_blocks: overrides kv_cache_gib with a number of blocks.
    prefix_caching: reuse the keys and values of prompts that begin alike.
    pack_weights: on a CPU, keep oneDNN-packed copies of the weights: faster, at twice the memory.
    padding: "buckets" pads decode steps to fixed batch sizes (what CUDA graphs need), "none" does not.
    async_depth: steps launched before the oldest one's result is read.
    """

    model: str | Path
    heads: tuple[Path, ...] = ()
    served_model_name: str | None = None
    device: str = "auto"
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    max_model_len: int | None = None
    max_num_seqs: int = 64
    max_num_batched_tokens: int = 512
    block_size: int = 16
    kv_cache_gib: float = 2.0
    num_blocks: int | None = None
    prefix_caching: bool = True
    pack_weights: bool = True
    padding: Literal["none", "buckets"] = "none"
    async_depth: Literal[0, 1] = 0

    def __post_init__(self) -> None:
        for name in ("max_num_seqs", "max_num_batched_tokens", "block_size"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        if self.max_num_batched_tokens < self.max_num_seqs:
            raise ValueError(
                f"max_num_batched_tokens ({self.max_num_batched_tokens}) must be at least max_num_seqs "
                f"({self.max_num_seqs}), so that every running sequence can advance in one step"
            )
        if self.kv_cache_gib <= 0:
            raise ValueError(f"kv_cache_gib must be above 0, got {self.kv_cache_gib}")
