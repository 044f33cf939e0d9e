"""Inputs of the kernels, drawn on the device from a fixed seed, and the sizes that cases run at."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from benchmarks.gpu.timing import Repeats

LOGIT_SCALE = 3.0  # standard deviation of random logits: a few likely tokens, and a tail


@dataclass(frozen=True, slots=True)
class DrawKeys:
    """What a draw is keyed by, and its temperature; [B] each."""

    seeds: Tensor
    positions: Tensor
    choices: Tensor
    temperature: Tensor

    def as_dict(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in ("seeds", "positions", "choices", "temperature")}

    def pick(self, rows: Tensor) -> DrawKeys:
        return DrawKeys(*(value[rows] for value in self.as_dict().values()))


@dataclass(frozen=True, slots=True)
class HeadInputs:
    """h [B, d], weight W [V, d]; column g [B, d] and lowrank (a [B, r], up [V, r]), either or both None.

    The advantage is W g + up a; logits and advantage have standard deviations of about 3 and 1.
    """

    h: Tensor
    weight: Tensor
    column: Tensor | None
    lowrank: tuple[Tensor, Tensor] | None

    def exact_logits(self) -> Tensor:
        """f64[B, V]"""
        return self.h.double() @ self.weight.double().T

    def exact_advantage(self) -> Tensor | None:
        """f64[B, V]"""
        total: Tensor | None = None
        if self.column is not None:
            total = self.column.double() @ self.weight.double().T
        if self.lowrank is not None:
            inner, up = (part.double() for part in self.lowrank)
            total = inner @ up.T if total is None else total + inner @ up.T
        return total

    def pick(self, rows: Tensor) -> HeadInputs:
        column = None if self.column is None else self.column[rows]
        lowrank = None if self.lowrank is None else (self.lowrank[0][rows], self.lowrank[1])
        return HeadInputs(self.h[rows], self.weight, column, lowrank)


class Source:
    """Random tensors of one device and one seed."""

    def __init__(self, device: torch.device, seed: int = 0) -> None:
        self.device = device
        self._generator = torch.Generator(device).manual_seed(seed)

    def normal(self, *shape: int, scale: float = 1.0, dtype: torch.dtype = torch.float32) -> Tensor:
        values = torch.randn(*shape, generator=self._generator, device=self.device, dtype=torch.float32)
        return values.mul_(scale).to(dtype)

    def integers(self, low: int, high: int, *shape: int) -> Tensor:
        return torch.randint(low, high, shape, generator=self._generator, device=self.device)

    def permutation(self, n: int) -> Tensor:
        return torch.randperm(n, generator=self._generator, device=self.device)

    def cycle(self, values: Sequence[float], n: int) -> Tensor:
        """f32[n]: the values in turn."""
        return torch.tensor([values[i % len(values)] for i in range(n)], device=self.device)

    def keys(self, num_rows: int, temperatures: Sequence[float] = (1.0, 0.7, 0.0, 2.0)) -> DrawKeys:
        return DrawKeys(
            self.integers(-(2**63), 2**63 - 1, num_rows),
            self.integers(0, 5000, num_rows),
            self.integers(0, 2, num_rows),
            self.cycle(temperatures, num_rows),
        )

    def strengths(self, num_rows: int) -> Tensor:
        """f32[n]: mixed, with rows at 0 and away from the heads."""
        return self.cycle((1.0, -2.0, 0.0, 0.3, 3.0, 0.01), num_rows)

    def head(
        self,
        num_rows: int,
        shape: tuple[int, int],
        dtype: torch.dtype,
        *,
        tied: bool = False,
        rank: int = 0,
    ) -> HeadInputs:
        """shape: (d, V). rank: of the low-rank part, 0 for none."""
        hidden, vocab = shape
        weight = self.normal(vocab, hidden, scale=LOGIT_SCALE * hidden**-0.5, dtype=dtype)
        column = self.normal(num_rows, hidden, scale=1 / LOGIT_SCALE, dtype=dtype) if tied else None
        lowrank = None
        if rank:
            up = self.normal(vocab, rank, scale=rank**-0.5, dtype=dtype)
            lowrank = (self.normal(num_rows, rank, dtype=dtype), up)
        return HeadInputs(self.normal(num_rows, hidden, dtype=dtype), weight, column, lowrank)


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
