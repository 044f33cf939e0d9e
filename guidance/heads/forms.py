"""Head forms: small trained modules on h, what the policy's output embedding reads; untrained zero."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.rnn import pad_sequence

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


class _Hidden(nn.Module):
    """φ(down h + down_bias)."""

    def __init__(self, part: ScalarPart, hidden_size: int) -> None:
        super().__init__()
        self.down = nn.Parameter(torch.randn(part.width, hidden_size) * hidden_size**-0.5)  # [width, d]
        self.down_bias = nn.Parameter(torch.zeros(part.width))
        self.activation = ACTIVATIONS[part.activation]

    def forward(self, h: Tensor, recalled: Tensor | None = None) -> Tensor:
        """[..., width] of h [..., d]; recalled [..., width] is added before φ."""
        hidden = h @ self.down.T + self.down_bias
        return self.activation(hidden if recalled is None else hidden + recalled)


class MeanMemory(nn.Module):
    """The running mean of φ(down h + down_bias) [units] over a reply's states, kept as sum and number."""

    def __init__(self, part: ScalarPart, hidden_size: int) -> None:
        super().__init__()
        self.units, self.state_size = part.units, part.units + 1
        self.down = nn.Parameter(torch.randn(part.units, hidden_size) * hidden_size**-0.5)  # [units, d]
        self.down_bias = nn.Parameter(torch.zeros(part.units))
        self.activation = ACTIVATIONS[part.activation]

    def forward(self, h: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        """h [B, T, d] and the state [B, state_size] before it -> what is remembered at each [B, T, units],
        and the state after it."""
        features = self.activation(h @ self.down.T + self.down_bias)
        kept = torch.cat([features, torch.ones_like(features[..., :1])], -1)
        sums = state[:, None] + kept.cumsum(1)
        return sums[..., :-1] / sums[..., -1:], sums[:, -1]


class GruMemory(nn.Module):
    """A gated recurrent unit (Cho 2014) over a reply's states, which are the state that it keeps."""

    def __init__(self, part: ScalarPart, hidden_size: int) -> None:
        super().__init__()
        self.units = self.state_size = part.units
        self.cell = nn.GRUCell(hidden_size, part.units)

    def forward(self, h: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        """See MeanMemory."""
        states = []
        for column in h.unbind(1):
            state = self.cell(column, state)
            states.append(state)
        return torch.stack(states, 1), state


MEMORIES: dict[str, type[MeanMemory] | type[GruMemory]] = {"mean": MeanMemory, "gru": GruMemory}


class _Remembering(nn.Module):
    """φ(down h + recall m + down_bias), m what the memory holds of the reply's states up to this h.

    A reply of T tokens has the states s_0 … s_T: s_0 is where its first token is predicted. The memory is
    zero before s_0, so that it knows nothing of the prompt but what s_0 says.
    """

    def __init__(self, part: ScalarPart, hidden_size: int) -> None:
        super().__init__()
        self.memory = MEMORIES[part.form](part, hidden_size)
        self.hidden = _Hidden(part, hidden_size)
        self.recall = nn.Parameter(torch.randn(part.width, part.units) * part.units**-0.5)

    def forward(self, h: Tensor, lengths: Tensor) -> Tensor:
        """h [N, d] of replies' states from s_0 on, end to end, lengths i64[B] of each -> [N, width]."""
        rows = pad_sequence(h.split(lengths.tolist()), batch_first=True)  # [B, T, d]
        remembered, _ = self.memory(rows, h.new_zeros(len(rows), self.memory.state_size))
        is_state = torch.arange(rows.shape[1], device=h.device) < lengths.to(h.device)[:, None]
        return self.hidden(h, remembered[is_state] @ self.recall.T)

    def step(self, h: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        """One more state h [B, d] of B replies -> [B, width], and the memory's state after it."""
        remembered, state = self.memory(h[:, None], state)
        return self.hidden(h, remembered[:, 0] @ self.recall.T), state


class RememberingScalar(nn.Module):
    """w · φ(down h + recall m + down_bias) + b: an mlp that remembers."""

    def __init__(self, part: ScalarPart, hidden_size: int) -> None:
        super().__init__()
        self.inner = _Remembering(part, hidden_size)
        self.weight = nn.Parameter(torch.zeros(part.width))
        self.bias = nn.Parameter(torch.zeros(()))

    def forward(self, h: Tensor, lengths: Tensor) -> Tensor:
        """[N] of h [N, d]; see _Remembering."""
        return self.inner(h, lengths) @ self.weight + self.bias

    def step(self, h: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        """[B] of h [B, d], and the state after it."""
        hidden, state = self.inner.step(h, state)
        return hidden @ self.weight + self.bias, state


class BinnedScalar(nn.Module):
    """The mean of a distribution over K bins, evenly from low to high; untrained, the middle of them.

    Its logits are linear in h, or in the hidden units of an mlp or of one that remembers. Where only the mean
    is read it is a scalar like the others.
    """

    def __init__(self, part: ScalarPart, hidden_size: int) -> None:
        super().__init__()
        self.low, self.high = part.low, part.high
        self.inner = _inner(part, hidden_size)
        width = hidden_size if part.form == "linear" else part.width
        self.weight = nn.Parameter(torch.zeros(part.bins, width))  # [K, width]
        self.bias = nn.Parameter(torch.zeros(part.bins))

    def logits(self, h: Tensor, lengths: Tensor | None = None) -> Tensor:
        """[..., K] of h [..., d]; of one that remembers, see _Remembering."""
        hidden: Tensor = self.inner(h) if lengths is None else self.inner(h, lengths)
        return hidden @ self.weight.T + self.bias

    def forward(self, h: Tensor, lengths: Tensor | None = None) -> Tensor:
        return self._mean(self.logits(h, lengths))

    def step(self, h: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        """Of one that remembers: see RememberingScalar."""
        assert isinstance(self.inner, _Remembering)
        hidden, state = self.inner.step(h, state)
        return self._mean(hidden @ self.weight.T + self.bias), state

    def _mean(self, logits: Tensor) -> Tensor:
        # Made where it is needed: a copy to the device could not be captured in a CUDA graph.
        centres = torch.linspace(self.low, self.high, logits.shape[-1], device=logits.device)
        return expected(logits, centres)


def _inner(part: ScalarPart, hidden_size: int) -> nn.Module:
    if part.form in MEMORIES:
        return _Remembering(part, hidden_size)
    return _Hidden(part, hidden_size) if part.form == "mlp" else nn.Identity()


Advantage = TiedAdvantage | LowRankAdvantage
Remembering = RememberingScalar | BinnedScalar
Scalar = LinearScalar | MlpScalar | Remembering
ADVANTAGES: dict[str, type[TiedAdvantage] | type[LowRankAdvantage]] = {
    "tied": TiedAdvantage,
    "lowrank": LowRankAdvantage,
}
SCALARS: dict[str, type[LinearScalar] | type[MlpScalar] | type[RememberingScalar]] = {
    "linear": LinearScalar,
    "mlp": MlpScalar,
    **dict.fromkeys(MEMORIES, RememberingScalar),
}


def make_scalar(part: ScalarPart, hidden_size: int) -> Scalar:
    """An untrained value or reward of the part's form; with bins, a distribution's mean."""
    return BinnedScalar(part, hidden_size) if part.bins else SCALARS[part.form](part, hidden_size)


def memory_of(part: Scalar | None) -> MeanMemory | GruMemory | None:
    """What the part remembers a reply by; None of one that reads h alone."""
    inner = getattr(part, "inner", None)
    return inner.memory if isinstance(inner, _Remembering) else None


def along(part: Scalar, h: Tensor, lengths: Tensor) -> Tensor:
    """V at h [N, d] of replies' states from s_0 on, end to end, lengths i64[B] of each -> [N]. One that reads
    h alone needs no order, and no state need be there."""
    values: Tensor = part(h) if memory_of(part) is None else part(h, lengths)
    return values


class Head(nn.Module):
    """The parts of one head. A part that the head does not have is None.

    advantage(h [..., d], lm_head [V, d]) -> A [..., V]; value(h [..., d]) and reward(h [..., d]) -> [...],
    both raw: the manifest's reward_mean and reward_std turn them into standard units. A value may remember:
    read it by `along`, or state by state by its `step`.
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
