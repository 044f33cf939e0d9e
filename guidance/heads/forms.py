"""Head forms: small trained modules on h, what the policy's output embedding reads; untrained zero."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from trimtab.guidance.heads.manifest import AdvantagePart, Parts, ScalarPart
from trimtab.guidance.losses.value import expected


def identity(x: Tensor) -> Tensor:
    return x


ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {"identity": identity, "silu": F.silu}


class TiedAdvantage(nn.Module):
    """A(s, ·) = W g(h), g(h) = up φ(down h), with W the policy's own output embedding."""

    def __init__(self, part: AdvantagePart, hidden_size: int, vocab_size: int) -> None:
        super().__init__()
        self.down = nn.Parameter(torch.randn(part.rank, hidden_size) * hidden_size**-0.5)  # [r, d]
        self.up = nn.Parameter(torch.zeros(hidden_size, part.rank))  # [d, r]
        self.activation = ACTIVATIONS[part.activation]

    def column(self, h: Tensor) -> Tensor:
        """g(h) [..., d]: what the vocabulary is multiplied with."""
        return self.activation(h @ self.down.T) @ self.up.T

    def vocabulary(self, lm_head: Tensor) -> Tensor:
        """[V, d]"""
        return lm_head

    def factors(self, h: Tensor, lm_head: Tensor) -> tuple[Tensor, Tensor]:
        """[..., r] and [V, r], whose product A is: W · up is taken once for all positions, which leaves each
        of them r columns of the vocabulary and not d."""
        return self.activation(h @ self.down.T), lm_head @ self.up

    def forward(self, h: Tensor, lm_head: Tensor) -> Tensor:
        return self.column(h) @ self.vocabulary(lm_head).T


class LowRankAdvantage(nn.Module):
    """A(s, ·) = up φ(down h), with a vocabulary of its own."""

    def __init__(self, part: AdvantagePart, hidden_size: int, vocab_size: int) -> None:
        super().__init__()
        self.down = nn.Parameter(torch.randn(part.rank, hidden_size) * hidden_size**-0.5)  # [r, d]
        self.up = nn.Parameter(torch.zeros(vocab_size, part.rank))  # [V, r]
        self.activation = ACTIVATIONS[part.activation]

    def column(self, h: Tensor) -> Tensor:
        """φ(down h) [..., r]: what the vocabulary is multiplied with."""
        return self.activation(h @ self.down.T)

    def vocabulary(self, lm_head: Tensor) -> Tensor:
        """[V, r]: the head may have rows for what the policy is padded with."""
        return self.up[: len(lm_head)]

    def factors(self, h: Tensor, lm_head: Tensor) -> tuple[Tensor, Tensor]:
        """[..., r] and [V, r], whose product A is."""
        return self.column(h), self.vocabulary(lm_head)

    def forward(self, h: Tensor, lm_head: Tensor) -> Tensor:
        return self.column(h) @ self.vocabulary(lm_head).T


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


class BinnedScalar(nn.Module):
    """The mean of a distribution over K bins, evenly from low to high; untrained, the middle of them.

    Its logits are linear in h, or in an mlp's hidden units. Where only the mean is read it is a scalar like
    the others.
    """

    def __init__(self, part: ScalarPart, hidden_size: int) -> None:
        super().__init__()
        self.low, self.high = part.low, part.high
        self.inner = _Hidden(part, hidden_size) if part.form == "mlp" else nn.Identity()
        width = part.width if part.form == "mlp" else hidden_size
        self.weight = nn.Parameter(torch.zeros(part.bins, width))  # [K, width]
        self.bias = nn.Parameter(torch.zeros(part.bins))

    def logits(self, h: Tensor) -> Tensor:
        """[..., K] of h [..., d]"""
        return self.inner(h) @ self.weight.T + self.bias

    def forward(self, h: Tensor) -> Tensor:
        logits = self.logits(h)
        # Made where it is needed: a copy to the device could not be captured in a CUDA graph.
        centres = torch.linspace(self.low, self.high, logits.shape[-1], device=h.device)
        return expected(logits, centres)


class _Hidden(nn.Module):
    """φ(down h + down_bias)."""

    def __init__(self, part: ScalarPart, hidden_size: int) -> None:
        super().__init__()
        self.down = nn.Parameter(torch.randn(part.width, hidden_size) * hidden_size**-0.5)  # [width, d]
        self.down_bias = nn.Parameter(torch.zeros(part.width))
        self.activation = ACTIVATIONS[part.activation]

    def forward(self, h: Tensor) -> Tensor:
        return self.activation(h @ self.down.T + self.down_bias)


Advantage = TiedAdvantage | LowRankAdvantage
Scalar = LinearScalar | MlpScalar | BinnedScalar
ADVANTAGES: dict[str, type[TiedAdvantage] | type[LowRankAdvantage]] = {
    "tied": TiedAdvantage,
    "lowrank": LowRankAdvantage,
}
SCALARS: dict[str, type[LinearScalar] | type[MlpScalar]] = {"linear": LinearScalar, "mlp": MlpScalar}


def make_scalar(part: ScalarPart, hidden_size: int) -> Scalar:
    """An untrained value or reward of the part's form; with bins, a distribution's mean."""
    return BinnedScalar(part, hidden_size) if part.bins else SCALARS[part.form](part, hidden_size)


class Head(nn.Module):
    """The parts of one head. A part that the head does not have is None.

    advantage(h [..., d], lm_head [V, d]) -> A [..., V]; value(h [..., d]) and reward(h [..., d]) -> [...],
    both raw: the manifest's reward_mean and reward_std turn them into standard units.
    """

    def __init__(self, parts: Parts, hidden_size: int, vocab_size: int) -> None:
        super().__init__()
        self.advantage: Advantage | None = None
        self.value: Scalar | None = None
        self.reward: Scalar | None = None
        if parts.advantage is not None:
            self.advantage = ADVANTAGES[parts.advantage.form](parts.advantage, hidden_size, vocab_size)
        if parts.value is not None:
            self.value = make_scalar(parts.value, hidden_size)
        if parts.reward is not None:
            self.reward = make_scalar(parts.reward, hidden_size)
