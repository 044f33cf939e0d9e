"""Bank of heads: stacks a server's heads, so that rows with different ones share a call."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from trimtab.guidance.errors import HeadError
from trimtab.guidance.heads.fingerprint import PolicyIdentity
from trimtab.guidance.heads.forms import (
    Advantage,
    Head,
    LinearScalar,
    Remembering,
    Scalar,
    TiedAdvantage,
    memory_of,
)
from trimtab.guidance.heads.manifest import Manifest
from trimtab.guidance.heads.store import load_head
from trimtab.kernels.value_adapter import value_adapter
from trimtab.kernels.wide_product import wide_product

WHOLE = 32
"""Ranks are padded to multiples of it: of so many columns a CPU's product gives every row the same bits,
wherever it stands; of fewer, or of some that are left over, it need not."""


Product = Callable[[Tensor], Tensor]
"""f32[N, K] -> f32[N, M], what is multiplied with a matrix [M, K]."""


@dataclass(frozen=True)
class Vocabulary:
    """Products with the matrices of heads, by other means than torch's.

    project: columns [N, d] times the policy's output embedding W, f32[N, V]. A tied head's product with it
        is taken once, W·up [V, r], which leaves r columns of the vocabulary to multiply with for every row,
        and not d.
    product: of a matrix [V, r]; inner: of a small one [R, d]. They may pack it, and need not keep it.
    """

    project: Product
    product: Callable[[Tensor], Product]
    inner: Callable[[Tensor], Product]


@dataclass(frozen=True, slots=True)
class _Adapters:
    """The inner matrices of all advantages of one form. members: bank indices, in order."""

    members: tuple[int, ...]
    index: Tensor  # i64[H'], the members on the device
    down: Tensor  # [H', r, d], ranks padded with zeros to the largest, and that to a multiple of WHOLE
    up: Tensor | None  # [H', d, r] of tied heads
    activations: tuple[str, ...]

    def column(
        self, h: Tensor, weights: Tensor, active: Sequence[int], inner: Product | None = None
    ) -> Tensor | None:
        """Weighted g [G, d] of tied heads, or a [G, H'·r] of low-rank ones; None when no member is active.
        inner: multiplies with `down` of low-rank ones."""
        mine = tuple(slot for slot, member in enumerate(self.members) if member in active)
        if not mine:
            return None
        if inner is not None:
            columns = inner(h.float())
            for slot, part in enumerate(columns.chunk(len(self.members), 1)):
                weight = weights[:, self.members[slot], None]
                is_silu = self.activations[slot] == "silu"
                part.copy_(torch.where(weight != 0, (F.silu(part) if is_silu else part) * weight, 0.0))
            return columns
        return value_adapter(
            h, weights[:, self.index], self.down, self.up, self.activations, None, None, mine
        )[0]


@dataclass(frozen=True, slots=True)
class _Scalars:
    """Values (or rewards) of all heads in standard units: linear ones in one product, the rest one by one.
    Those that remember are read by `step`, and nan otherwise."""

    weight: Tensor  # f32[H, d], zero where a head has no linear part
    bias: Tensor  # f32[H], nan where a head has no linear part
    others: tuple[tuple[int, Scalar, float, float], ...]  # index, part, mean, std
    remembering: Mapping[int, tuple[Remembering, float, float]]  # by index

    def __call__(self, h: Tensor) -> Tensor:
        h = h.float()
        out = h @ self.weight.T + self.bias  # [B, H]
        for index, part, mean, std in self.others:
            out[:, index] = (part(h) - mean) / std
        return out

    def step(self, index: int, h: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        part, mean, std = self.remembering[index]
        value, state = part.step(h.float(), state)
        return (value - mean) / std, state

    def remember(self, index: int, h: Tensor, state: Tensor) -> Tensor:
        memory = memory_of(self.remembering[index][0])
        assert memory is not None
        return memory(h.float(), state)[1]


class HeadBank:
    """Heads by index, in the order they were given; H of them.

    names, manifests: one entry per head; has_advantage, has_value, has_reward say which parts it has.
    memory_sizes: how many numbers its value remembers of a reply; 0 of one that reads h alone, or without.
    value_per_advantage: see AdvantagePart; None of a head without an advantage, too.
    """

    def __init__(
        self,
        heads: Sequence[tuple[Head, Manifest]],
        hidden_size: int,
        *,
        device: torch.device | str,
        vocab_size: int | None = None,
        vocabulary: Vocabulary | None = None,
    ) -> None:
        """vocab_size: V of the logits that the heads steer, where heads have rows for padding beyond it.
        vocabulary: with it every advantage is a low-rank one, and has no factors."""
        self.manifests = tuple(manifest for _, manifest in heads)
        self.names = tuple(manifest.name for manifest in self.manifests)
        self.has_advantage = tuple(head.advantage is not None for head, _ in heads)
        self.has_value = tuple(head.value is not None for head, _ in heads)
        self.has_reward = tuple(head.reward is not None for head, _ in heads)
        self.memory_sizes = tuple(_memory_size(head.value) for head, _ in heads)
        advantage_parts = [manifest.parts.advantage for manifest in self.manifests]
        self.value_per_advantage = tuple(
            None if part is None else part.value_per_advantage for part in advantage_parts
        )
        self._index = {name: index for index, name in enumerate(self.names)}
        self._vocab_size, self._vocabulary = vocab_size, vocabulary
        advantages = {i: head.advantage for i, (head, _) in enumerate(heads) if head.advantage is not None}
        tied = {i: a for i, a in advantages.items() if isinstance(a, TiedAdvantage) and vocabulary is None}
        lowrank = {i: a for i, a in advantages.items() if i not in tied}
        self._tied = _stack(tied, self.manifests, has_up=True)
        self._lowrank = _stack(lowrank, self.manifests, has_up=False)
        self._lowrank_up = {i: self._up(a) for i, a in lowrank.items()} if vocabulary is None else {}
        self._products = {i: self._product(i, a) for i, a in lowrank.items()}
        self._is_tied = {i: isinstance(a, TiedAdvantage) for i, a in advantages.items()}
        self._inner = self._new_inner()
        self._ranks = {i: a.down.shape[0] for i, a in lowrank.items()}
        self._stacked_up: tuple[tuple[int, ...], Tensor] | None = None
        self._values = _gather([head.value for head, _ in heads], self.manifests, hidden_size, device)
        self._rewards = _gather([head.reward for head, _ in heads], self.manifests, hidden_size, device)

    @classmethod
    def load(
        cls,
        folders: Sequence[Path],
        policy: PolicyIdentity,
        *,
        device: torch.device | str,
        dtype: torch.dtype,
        vocab_size: int | None = None,
        vocabulary: Vocabulary | None = None,
    ) -> HeadBank:
        """Reads the heads and makes sure that each fits the policy. dtype: that of h; scalars stay float32.
        vocab_size, vocabulary: see the constructor.

        Raises:
            HeadError: see load_head; or two heads share a name.
        """
        heads = [load_head(Path(folder), policy, device=device, dtype=dtype) for folder in folders]
        owner: dict[str, Path] = {}
        for folder, (_, manifest) in zip(folders, heads, strict=True):
            if manifest.name in owner:
                raise HeadError(
                    f"{owner[manifest.name]} and {folder} are both named {manifest.name!r}: load one of them"
                )
            owner[manifest.name] = Path(folder)
        return cls(heads, policy.hidden_size, device=device, vocab_size=vocab_size, vocabulary=vocabulary)

    def _up(self, advantage: Advantage) -> Tensor:
        """[V, r], what φ(Dh) is multiplied with."""
        if isinstance(advantage, TiedAdvantage):
            assert self._vocabulary is not None
            return self._vocabulary.project(advantage.up.float().T.contiguous()).T.contiguous()
        return advantage.up[: self._vocab_size]

    def _new_inner(self) -> Product | None:
        if self._vocabulary is None or self._lowrank is None:
            return None
        return self._vocabulary.inner(self._lowrank.down.flatten(0, 1))

    def _product(self, index: int, advantage: Advantage) -> Product:
        if self._vocabulary is not None:
            return self._vocabulary.product(self._up(advantage))
        up = self._lowrank_up[index]
        return lambda inner: wide_product(inner.to(up.dtype), up)

    @torch.no_grad()
    def put_advantage(self, name: str, advantage: Advantage) -> None:
        """Gives a loaded head the weights of another advantage of its form and rank, in place: requests that
        are under way go on with them. Values and rewards stay.

        Raises:
            HeadError: no such head, or another form or size.
        """
        self.check([(name, 1.0)])
        index = self._index[name]
        is_tied = isinstance(advantage, TiedAdvantage)
        if is_tied is not self._is_tied.get(index):
            raise HeadError(f"head {name!r} has an advantage of another form: load one of this form")
        adapters = self._tied if is_tied and self._vocabulary is None else self._lowrank
        assert adapters is not None
        slot, rank = adapters.members.index(index), advantage.down.shape[0]
        pairs: list[tuple[Tensor, Tensor]] = [(adapters.down[slot, :rank], advantage.down)]
        if adapters.up is not None:
            pairs.append((adapters.up[slot, :, :rank], advantage.up))
        elif self._vocabulary is None:
            mine = self._lowrank_up[index]
            pairs.append((mine, advantage.up[: len(mine)]))
        if any(mine.shape != new.shape for mine, new in pairs) or adapters.down[slot, rank:].any():
            raise HeadError(f"head {name!r} has an advantage of another size: load one of rank {rank}")
        for mine, new in pairs:
            mine.copy_(new)
        if self._vocabulary is not None:
            self._products[index], self._inner = self._product(index, advantage), self._new_inner()
        self._stacked_up = None

    def check(self, heads: Sequence[tuple[str, float]], *, steering: bool = True) -> None:
        """Makes sure that a request may use these (name, weight) pairs; steering: its strength is not 0.

        Raises:
            HeadError: a head is not loaded, or is to steer and has no advantage.
        """
        for name, weight in heads:
            if name not in self._index:
                loaded = f"loaded are {', '.join(self.names)}" if self.names else "no head is loaded"
                raise HeadError(f"head {name!r} is not loaded: {loaded}")
            if steering and weight != 0 and not self.has_advantage[self._index[name]]:
                raise HeadError(f"head {name!r} has no advantage and cannot steer: use it at strength 0")

    def weights_row(self, heads: Sequence[tuple[str, float]]) -> list[float]:
        """The weight of every loaded head, times its manifest's scale; 0 for those not named. Length H."""
        row = [0.0] * len(self.names)
        for name, weight in heads:
            index = self._index[name]
            part = self.manifests[index].parts.advantage
            row[index] = weight * part.scale if part is not None else 0.0
        return row

    def tied_column(self, h: Tensor, weights: Tensor, active: Sequence[int]) -> Tensor | None:
        """g [G, d] with g Wᵀ = Σ wᵢ Aᵢ over the tied heads; None when no active head is tied.

        h: [G, d]. weights: f32[G, H] from weights_row. active: indices of the heads that any row uses.
        """
        return self._tied.column(h, weights, active) if self._tied else None

    def lowrank_advantage(self, h: Tensor, weights: Tensor, active: Sequence[int]) -> Tensor | None:
        """Σ wᵢ Aᵢ over the low-rank heads, f32[G, V]; None when none is active. See tied_column."""
        inner = self._lowrank.column(h, weights, active, self._inner) if self._lowrank else None
        if inner is None:
            return None
        assert self._lowrank is not None
        rank = self._lowrank.down.shape[1]
        total: Tensor | None = None
        for slot, member in enumerate(self._lowrank.members):
            if member in active:
                mine = inner[:, slot * rank : slot * rank + self._ranks[member]]
                term = self._products[member](mine)
                total = term if total is None else total.add_(term)
        return total

    def lowrank_factors(
        self, h: Tensor, weights: Tensor, active: Sequence[int]
    ) -> tuple[Tensor, Tensor] | None:
        """a [G, R] and U [V, R] with a Uᵀ = Σ wᵢ Aᵢ over the low-rank heads; None when none is active.

        What lowrank_advantage multiplies, for a kernel that does so itself; of a bank without a vocabulary.
        See tied_column.
        """
        inner = self._lowrank.column(h, weights, active) if self._lowrank else None
        if inner is None:
            return None
        assert self._lowrank is not None
        rank = self._lowrank.down.shape[1]
        mine = tuple(slot for slot, member in enumerate(self._lowrank.members) if member in active)
        columns = [inner[:, slot * rank : (slot + 1) * rank] for slot in mine]
        return torch.cat(columns, 1), self._up_of(mine)

    def _up_of(self, slots: tuple[int, ...]) -> Tensor:
        """U [V, R] of these low-rank heads side by side; kept until others are asked for."""
        assert self._lowrank is not None
        if self._stacked_up is None or self._stacked_up[0] != slots:
            rank = self._lowrank.down.shape[1]
            ups = [_pad(self._lowrank_up[self._lowrank.members[slot]], 1, rank) for slot in slots]
            self._stacked_up = slots, torch.cat(ups, 1) if len(ups) > 1 else ups[0]
        return self._stacked_up[1]

    def values(self, h: Tensor) -> Tensor:
        """V(s) in standard units: h [B, d] -> f32[B, H], nan where a head has no value part, or one that
        remembers: see step."""
        return self._values(h)

    def step(self, index: int, h: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        """V(s) in standard units f32[B] of a head whose value remembers, at the next states h [B, d] of B
        replies, and its memory f32[B, memory_sizes[index]] after them; state: before, 0 at a reply's s_0."""
        return self._values.step(index, h, state)

    def remember(self, index: int, h: Tensor, state: Tensor) -> Tensor:
        """The memory [B, memory_sizes[index]] that `step` would give after each of h [B, T, d] in turn."""
        return self._values.remember(index, h, state)

    def rewards(self, h: Tensor) -> Tensor:
        """Rewards in standard units of replies that end at h [B, d] -> f32[B, H], nan where there is none."""
        return self._rewards(h)


def _stack(
    advantages: Mapping[int, Advantage], manifests: Sequence[Manifest], *, has_up: bool
) -> _Adapters | None:
    if not advantages:
        return None
    chosen = advantages.values()
    rank = -(-max(a.down.shape[0] for a in chosen) // WHOLE) * WHOLE
    down = torch.stack([_pad(a.down, 0, rank) for a in chosen])
    up = torch.stack([_pad(a.up, 1, rank) for a in chosen]) if has_up else None
    members = tuple(advantages)
    activations = []
    for index in members:
        part = manifests[index].parts.advantage
        assert part is not None
        activations.append(part.activation)
    return _Adapters(members, torch.tensor(members, device=down.device), down, up, tuple(activations))


def _pad(matrix: Tensor, dim: int, size: int) -> Tensor:
    missing = list(matrix.shape)
    missing[dim] = size - matrix.shape[dim]
    return torch.cat([matrix, matrix.new_zeros(missing)], dim)


def _gather(
    parts: Sequence[Scalar | None],
    manifests: Sequence[Manifest],
    hidden_size: int,
    device: torch.device | str,
) -> _Scalars:
    weight = torch.zeros(len(parts), hidden_size, device=device)
    bias = torch.full((len(parts),), math.nan, device=device)
    others, remembering = [], {}
    for index, (part, manifest) in enumerate(zip(parts, manifests, strict=True)):
        if part is None:
            continue
        mean, std = manifest.reward_mean, manifest.reward_std
        if isinstance(part, LinearScalar):
            weight[index], bias[index] = part.weight / std, (part.bias - mean) / std
        elif memory_of(part) is not None:
            assert isinstance(part, Remembering)
            remembering[index] = (part, mean, std)
        else:
            others.append((index, part, mean, std))
    return _Scalars(weight, bias, tuple(others), remembering)


def _memory_size(part: Scalar | None) -> int:
    memory = memory_of(part)
    return 0 if memory is None else memory.state_size
