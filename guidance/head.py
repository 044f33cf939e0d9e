"""A head: a small trained module on h, what the policy's output embedding reads. An untrained one is zero."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from trimtab.guidance.activations import ACTIVATIONS
from trimtab.guidance.manifest import AdvantagePart, Parts, ScalarPart


class TiedAdvantage(nn.Module):
    """A(s, ·) = W g(h), g(h) = up φ(down h), with W the policy's own output embedding."""

    def __init__(self, part: AdvantagePart, hidden_size: int, vocab_size: int) -> None:
        super().__init__()
        self.down = nn.Parameter(torch.randn(part.rank, hidden_size) * hidden_size**-0.5)  # [r, d]
        self.up = nn.Parameter(torch.zeros(hidden_size, part.rank))  # [d, r]
        self.activation = ACTIVATIONS[part.activation]

    def forward(self, h: Tensor, lm_head: Tensor) -> Tensor:
        column = self.activation(h @ self.down.T) @ self.up.T  # [..., d]
        return column @ lm_head.T


class LowRankAdvantage(nn.Module):
    """A(s, ·) = up φ(down h), with a vocabulary of its own."""

    def __init__(self, part: AdvantagePart, hidden_size: int, vocab_size: int) -> None:
        super().__init__()
        self.down = nn.Parameter(torch.randn(part.rank, hidden_size) * hidden_size**-0.5)  # [r, d]
        self.up = nn.Parameter(torch.zeros(vocab_size, part.rank))  # [V, r]
        self.activation = ACTIVATIONS[part.activation]

    def forward(self, h: Tensor, lm_head: Tensor) -> Tensor:
        return self.activation(h @ self.down.T) @ self.up.T


class LinearScalar(nn.Module):
    """w · h + b."""

    def __init__(self, part: ScalarPart, hidden_size: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(hidden_size))  # [d]
        self.bias = nn.Parameter(torch.zeros(()))

    def forward(self, h: Tensor) -> Tensor:
        return h @ self.weight + self.bias


class MlpScalar(nn.Module):
    """w · φ(down h + down_bias) + b."""

    def __init__(self, part: ScalarPart, hidden_size: int) -> None:
        super().__init__()
        self.down = nn.Parameter(torch.randn(part.width, hidden_size) * hidden_size**-0.5)  # [width, d]
        self.down_bias = nn.Parameter(torch.zeros(part.width))
        self.weight = nn.Parameter(torch.zeros(part.width))
        self.bias = nn.Parameter(torch.zeros(()))
        self.activation = ACTIVATIONS[part.activation]

    def forward(self, h: Tensor) -> Tensor:
        return self.activation(h @ self.down.T + self.down_bias) @ self.weight + self.bias


ADVANTAGES: dict[str, type[TiedAdvantage] | type[LowRankAdvantage]] = {
    "tied": TiedAdvantage,
    "lowrank": LowRankAdvantage,
}
SCALARS: dict[str, type[LinearScalar] | type[MlpScalar]] = {"linear": LinearScalar, "mlp": MlpScalar}


class Head(nn.Module):
    """The parts of one head. A part that the head does not have is None.

    advantage(h [..., d], lm_head [V, d]) -> A [..., V]; value(h [..., d]) and reward(h [..., d]) -> [...],
    both raw: the manifest's reward_mean and reward_std turn them into standard units.
    """

    def __init__(self, parts: Parts, hidden_size: int, vocab_size: int) -> None:
        super().__init__()
        self.advantage: TiedAdvantage | LowRankAdvantage | None = None
        self.value: LinearScalar | MlpScalar | None = None
        self.reward: LinearScalar | MlpScalar | None = None
        if parts.advantage is not None:
            self.advantage = ADVANTAGES[parts.advantage.form](parts.advantage, hidden_size, vocab_size)
        if parts.value is not None:
            self.value = SCALARS[parts.value.form](parts.value, hidden_size)
        if parts.reward is not None:
            self.reward = SCALARS[parts.reward.form](parts.reward, hidden_size)
