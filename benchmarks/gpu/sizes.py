"""The shapes that cases run in: real ones for the GPU, and toy ones that try the cases on a CPU."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch

from benchmarks.gpu.timing import Repeats


def dtype_name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


@dataclass(frozen=True, slots=True)
class AttentionShape:
    """Heads, key/value heads, their dimension; window and softcap as `paged_attention` takes them."""

    heads: int
    kv_heads: int
    dim: int
    window: int | None = None
    softcap: float | None = None


@dataclass(frozen=True, slots=True)
class KernelSizes:
    """hidden, intermediate, vocab, rank, attention: of the benchmarks; Llama-3-8B's on the GPU.

    dtypes: in which weights and activations come. head_shapes: (d, V) of the checks, awkward ones too.
    check_rows, batch_sizes: rows of the checks, and of those that compare batches.
    fused_rows, logit_rows, truncated_rows, contexts (rows, context): of the benchmarks.
    adapter_shapes: (d, r) of the checks, adapter_rows: of the benchmarks of the heads' inner halves.
    num_draws: of each chi-square.
    """

    hidden: int = 4096
    intermediate: int = 14336
    vocab: int = 128256
    rank: int = 64
    dtypes: tuple[torch.dtype, ...] = (torch.bfloat16, torch.float16, torch.float32)
    head_shapes: tuple[tuple[int, int], ...] = ((4096, 128256), (1000, 5003), (80, 257))
    check_rows: tuple[int, ...] = (1, 17, 64)
    batch_sizes: tuple[int, ...] = (1, 2, 3, 7, 16, 17, 33, 64, 65, 128)
    max_fused_rows: int = 64
    fused_rows: tuple[int, ...] = (1, 8, 16, 32, 64, 128)
    logit_rows: tuple[int, ...] = (1, 64, 128, 288)
    adapter_shapes: tuple[tuple[int, int], ...] = ((4096, 64), (4116, 61))
    adapter_rows: tuple[int, ...] = (1, 64, 288)
    truncated_vocab: int = 131072
    truncated_rows: tuple[int, ...] = (64, 128)
    num_draws: int = 400_000
    attention: AttentionShape = AttentionShape(32, 8, 128)
    attention_checks: tuple[AttentionShape, ...] = (
        AttentionShape(32, 8, 128),
        AttentionShape(8, 8, 80, window=100),
        AttentionShape(16, 2, 256, softcap=30.0),
        AttentionShape(8, 1, 64),
    )
    check_contexts: tuple[int, ...] = (1, 15, 16, 17, 255, 256, 257, 700, 3000)
    contexts: tuple[tuple[int, int], ...] = ((1, 8192), (64, 1024), (288, 512))
    prompt: int = 2048
    block_size: int = 16
    repeats: Repeats = field(default_factory=Repeats)


TOY_KERNEL_SIZES = KernelSizes(
    hidden=48,
    intermediate=40,
    vocab=300,
    rank=16,
    dtypes=(torch.float32,),
    head_shapes=((40, 257),),
    check_rows=(1, 5),
    batch_sizes=(1, 3),
    max_fused_rows=5,
    fused_rows=(1, 3),
    logit_rows=(3,),
    adapter_shapes=((48, 16), (68, 13)),
    adapter_rows=(3,),
    truncated_vocab=300,
    truncated_rows=(3,),
    num_draws=100,
    attention=AttentionShape(4, 2, 16),
    attention_checks=(AttentionShape(4, 2, 16), AttentionShape(2, 2, 24, window=5, softcap=30.0)),
    check_contexts=(1, 9, 40),
    contexts=((2, 20),),
    prompt=20,
    block_size=8,
    repeats=Repeats(1, 2),
)
