"""Random inputs of the kernels, made on the device from a fixed seed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

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
