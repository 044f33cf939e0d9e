"""The models and loads of the engine part: Llama-3-8B's shape on the GPU, toys in a rehearsal."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from benchmarks.gpu.engine.subject import LlamaSize

SMALL = LlamaSize("small", 512, 6, 8, 4, 1376, 8000, 512, spread=3.0)
LLAMA_3_8B = LlamaSize("Llama-3-8B", 4096, 32, 32, 8, 14336, 128256, 1024)


@dataclass(frozen=True, slots=True)
class EngineSizes:
    """small: of the checks. large, dtype: of the benchmarks. rank: of the heads.

    check_prompts: lengths of prompts, one request each; check_tokens: of each reply.
    tied_rows, lowrank_rows: concurrent replies of the throughput benchmarks; peer_rows: beside others.
    prompt: tokens of each prompt. steps: decode steps of a turn; turns: of every contestant.
    """

    small: LlamaSize = SMALL
    large: LlamaSize = LLAMA_3_8B
    dtypes: tuple[torch.dtype, ...] = (torch.bfloat16, torch.float16, torch.float32)
    dtype: torch.dtype = torch.bfloat16
    rank: int = 64
    check_prompts: tuple[int, ...] = tuple(5 + 37 * i % 200 for i in range(20))
    check_tokens: int = 24
    tied_rows: int = 64
    lowrank_rows: int = 288
    peer_rows: int = 64
    prompt: int = 64
    steps: int = 32
    turns: int = 4
    profiled_steps: int = 10


TOY_ENGINE_SIZES = EngineSizes(
    small=LlamaSize("small", 32, 2, 4, 2, 48, 300, 128, spread=3.0),
    large=LlamaSize("large", 48, 2, 4, 2, 64, 300, 128),
    dtypes=(torch.float32,),
    dtype=torch.float32,
    rank=4,
    check_prompts=(5, 23, 14),
    check_tokens=6,
    tied_rows=2,
    lowrank_rows=3,
    peer_rows=2,
    prompt=8,
    steps=4,
    turns=2,
    profiled_steps=2,
)
