"""Rows with limits on their tilt, and each row's β in float64 by bisection of what the limits say."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

HALVINGS = 60


@dataclass(frozen=True)
class Limits:
    """The arguments of `solve_tilt`."""

    logits: Tensor
    advantage: Tensor
    advantage_row: Tensor
    strength: Tensor
    kl_cap: Tensor
    lift: Tensor

    def measure(self, beta: Tensor) -> tuple[Tensor, Tensor]:
        """KL(π_β ‖ π₀) and σ E_β[Ā] of each row."""
        base = self.logits.double().log_softmax(1)
        advantage = self.advantage.double()[self.advantage_row.clamp(min=0)]
        advantage = advantage - (base.exp() * advantage).sum(1, keepdim=True)
        guided = (self.logits.double() + beta.double()[:, None] * advantage).log_softmax(1)
        ratio = (guided - base).nan_to_num(nan=0.0)
        kl = (guided.exp() * ratio).sum(1)
        return kl, self.strength.sign() * (guided.exp() * advantage).sum(1)

    def solve(self) -> Tensor:
        low, high = torch.zeros_like(self.strength.double()), self.strength.double().abs()

        def allowed(b: Tensor) -> Tensor:
            kl, lift = self.measure(self.strength.sign() * b)
            return (kl <= self.kl_cap) & (lift < self.lift)

        low = torch.where(allowed(high), high, low)
        for _ in range(HALVINGS):
            middle = (low + high) / 2
            good = allowed(middle)
            low, high = torch.where(good, middle, low), torch.where(good, high, middle)
        b = torch.where((self.kl_cap > 0) & (self.lift > 0) & (self.advantage_row >= 0), low, 0)
        return self.strength.sign() * b

    def to(self, device: str) -> Limits:
        return Limits(*(getattr(self, name).to(device) for name in self.__dataclass_fields__))

    def rows(self, rows: Tensor) -> Limits:
        mine = (self.advantage_row, self.strength, self.kl_cap, self.lift)
        return Limits(self.logits[rows], self.advantage, *(values[rows] for values in mine))


def make_limits(num_rows: int, vocab_size: int, seed: int = 0, offset: float = 0.0) -> Limits:
    """Rows flat and peaked, masked and not, with heads that follow, oppose or ignore the base.

    By turns a KL cap, a lift, both or neither; most of them bind.
    """
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator)

    index = torch.arange(num_rows)
    width = torch.tensor([0.5, 2.0, 4.0])[index % 3]
    logits = width[:, None] * normal(num_rows, vocab_size)
    masked = normal(num_rows, vocab_size) > 0
    masked[:, 0] = False
    logits[masked & (index % 4 == 1)[:, None]] = -torch.inf
    follow = torch.tensor([0.0, 0.3, -0.5])[index // 2 % 3]
    advantage = normal(num_rows, vocab_size) + follow[:, None] * logits.clamp(min=-10)
    strength = torch.tensor([1.0, -1.0, 2.0, -4.0])[index % 4]
    # Rows in reverse, so that row and place in `advantage` differ.
    free = torch.full((num_rows,), torch.inf)
    rows = Limits(logits, advantage.flip(0), num_rows - 1 - index, strength, free, free)
    kl, lift = rows.measure(strength)
    share = 1.2 * torch.rand(2, num_rows, generator=generator)
    kind = index // 3 % 4
    kl_cap = torch.where(kind % 2 == 0, (share[0] ** 2 * kl).float(), torch.inf)
    lift = torch.where((kind == 1) | (kind == 2), (share[1] * lift).float(), torch.inf)
    return Limits(logits, advantage.flip(0) + offset, rows.advantage_row, strength, kl_cap, lift)
