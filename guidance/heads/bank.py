"""Bank of heads: stacks a server's heads, so that rows with different ones share a call."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from copy import copy
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import torch
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

LoadedHead = tuple[Head, Manifest]
WHOLE = 32
"""Ranks are padded to multiples of it: of so many columns a CPU's product gives every row the same bits,
wherever it stands; of fewer, or of some that are left over, it need not."""
Product = Callable[[Tensor], Tensor]
"""f32[N, K] -> f32[N, M], what is multiplied with a matrix [M, K]."""
Weighted = Callable[[Tensor, Tensor], Tensor]
"""h f32[G, d], w f32[G] -> w·A f32[G, V] of one head."""


@dataclass(frozen=True)
class Vocabulary:
    """Products with the matrices of heads, by other means than torch's.

    project: columns [N, d] times the policy's output embedding W, f32[N, V]. A tied head's product with it
        is taken once, W·up [V, r], which leaves r columns of the vocabulary to multiply with for every row,
        and not d.
    advantage: of an inner matrix [r, d], one of the vocabulary [V, r] and the name of what is between them.
        It may pack them, and need not keep them.
    """

    project: Product
    advantage: Callable[[Tensor, Tensor, str], Weighted]


@dataclass(frozen=True, slots=True)
class _Adapters:
    """The inner matrices of all advantages of one form. members: bank indices, in order."""

    members: tuple[int, ...]
    index: Tensor  # i64[H'], the members on the device
    down: Tensor  # [H', r, d], ranks padded with zeros to the largest, and that to a multiple of WHOLE
    up: Tensor | None  # [H', d, r] of tied heads
    activations: tuple[str, ...]

    def column(self, h: Tensor, weights: Tensor, active: Sequence[int]) -> Tensor | None:
        """Weighted g [G, d] of tied heads, or a [G, H'·r] of low-rank ones; None when no member is active."""
        mine = tuple(slot for slot, member in enumerate(self.members) if member in active)
        if not mine:
            return None
        return value_adapter(
            h, weights[:, self.index], self.down, self.up, self.activations, None, None, mine
        )[0]


@dataclass(frozen=True, slots=True)
class _Scalars:
    """Values (or rewards) of all heads in standard units: linear ones in one product, the rest one by one.
    Those that remember are read by `step`, and nan otherwise."""

    weight: Tensor | None  # f32[H, d], zero where a head has no linear part; none where no head has one
    bias: Tensor  # f32[H], nan where a head has no linear part
    others: tuple[tuple[int, Scalar, float, float], ...]  # index, part, mean, std
    remembering: Mapping[int, tuple[Remembering, float, float]]  # by index

    def __call__(self, h: Tensor) -> Tensor:
        h = h.float()
        out = self.bias.repeat(len(h), 1) if self.weight is None else h @ self.weight.T + self.bias  # [B, H]
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


@dataclass(frozen=True, slots=True)
class _Shelf:
    """Heads that were put in together. columns: of the bank, those that they are. lowrank_up, ranks,
    products: of low-rank heads, by column; of a bank with a vocabulary tied ones are low-rank as well, and it
    keeps `advantages` in the place of both. Scalars are by place in `columns`."""

    columns: tuple[int, ...]
    tied: _Adapters | None
    lowrank: _Adapters | None
    lowrank_up: dict[int, Tensor]
    ranks: dict[int, int]
    products: dict[int, Product]
    advantages: dict[int, Weighted]
    values: _Scalars
    rewards: _Scalars

    @classmethod
    def of(
        cls,
        heads: Sequence[LoadedHead | None],
        columns: Sequence[int],
        hidden_size: int,
        device: torch.device | str,
        vocab_size: int | None,
        vocabulary: Vocabulary | None,
    ) -> _Shelf:
        """heads: None where a column is vacant."""
        given = [(at, head) for at, head in zip(columns, heads, strict=True) if head is not None]
        parts = {at: head.advantage for at, (head, _) in given if head.advantage is not None}
        tied = {at for at, part in parts.items() if isinstance(part, TiedAdvantage) and vocabulary is None}
        lowrank = {at: part for at, part in parts.items() if at not in tied}
        ups = {at: part.up[:vocab_size] for at, part in lowrank.items()} if vocabulary is None else {}
        advantages = {
            at: _advantage(lowrank[at], _activation(manifest), vocab_size, vocabulary)
            for at, (_, manifest) in given
            if vocabulary is not None and at in lowrank
        }
        values, rewards = (
            [None if head is None else (getattr(head[0], part), head[1]) for head in heads]
            for part in ("value", "reward")
        )
        return cls(
            tuple(columns),
            _stack([(at, head) for at, head in given if at in tied], has_up=True),
            _stack([(at, head) for at, head in given if at in lowrank], has_up=False),
            ups,
            {at: part.down.shape[0] for at, part in lowrank.items()},
            {at: partial(_outer_product, up) for at, up in ups.items()},
            advantages,
            _gather(values, hidden_size, device),
            _gather(rewards, hidden_size, device),
        )


class HeadBank:
    """Heads by column, in the order they were given; H columns, some of which may be vacant.

    names: one entry per column, "" of a vacant one; has_advantage, has_value, has_reward say which parts its
    head has. manifests: of the heads that can be asked for, in their columns' order.
    memory_sizes: how many numbers its value remembers of a reply; 0 of one that reads h alone, or without.
    value_per_advantage: see AdvantagePart; None of a head without an advantage, too.

    `with_head`, `without_head` and `vacated` give another bank, in which every head that both have keeps its
    column and gives the same bits: what was put in together is computed together, and apart from all else.
    """

    def __init__(
        self,
        heads: Sequence[LoadedHead],
        hidden_size: int,
        *,
        device: torch.device | str,
        vocab_size: int | None = None,
        num_vacant: int = 0,
        vocabulary: Vocabulary | None = None,
    ) -> None:
        """vocab_size: V of the logits that the heads steer, where heads have rows for padding beyond it.
        num_vacant: columns for heads that come later. vocabulary: with it every advantage is a low-rank one,
        and has no factors."""
        self._sizes = hidden_size, device, vocab_size, vocabulary
        columns: list[LoadedHead | None] = [*heads, *[None] * num_vacant]
        self._shelves: tuple[_Shelf, ...] = (_Shelf.of(columns, range(len(columns)), *self._sizes),)
        self._stacked_up: tuple[tuple[int, ...], Tensor] | None = None
        self._describe(tuple(columns), {manifest.name: i for i, (_, manifest) in enumerate(heads)})

    def _describe(self, columns: tuple[LoadedHead | None, ...], index: Mapping[str, int]) -> None:
        """index: of heads that can be asked for, the columns."""
        self._columns, self._index = columns, index
        parts = [None if column is None else column[0] for column in columns]
        manifests = [None if column is None else column[1] for column in columns]
        self.names = tuple("" if manifest is None else manifest.name for manifest in manifests)
        self.manifests = tuple(self.manifest(i) for i in sorted(index.values()))
        self.has_advantage = tuple(head is not None and head.advantage is not None for head in parts)
        self.has_value = tuple(head is not None and head.value is not None for head in parts)
        self.has_reward = tuple(head is not None and head.reward is not None for head in parts)
        self.memory_sizes = tuple(0 if head is None else _memory_size(head.value) for head in parts)
        advantages = [None if manifest is None else manifest.parts.advantage for manifest in manifests]
        self.value_per_advantage = tuple(
            None if part is None else part.value_per_advantage for part in advantages
        )

    def manifest(self, column: int) -> Manifest:
        """Of the head in a column, which is not vacant."""
        head = self._columns[column]
        assert head is not None
        return head[1]

    @property
    def has_vocabulary(self) -> bool:
        """Whether its advantages are computed by a backend's own products; see Vocabulary."""
        return self._sizes[-1] is not None

    @property
    def offered(self) -> Mapping[str, int]:
        """Heads that can be asked for, with their columns."""
        return self._index

    @property
    def withdrawn(self) -> tuple[int, ...]:
        """Columns of heads that cannot be asked for any more."""
        held = set(self._index.values())
        return tuple(i for i, column in enumerate(self._columns) if column is not None and i not in held)

    def with_head(self, loaded: LoadedHead) -> HeadBank:
        """With another one, in a vacant column.

        Raises:
            HeadError: one of its name can be asked for already, or no column is vacant.
        """
        name = loaded[1].name
        if name in self._index:
            raise HeadError(f"a head {name!r} is loaded already: unload it first, or give another name")
        column = next((i for i, head in enumerate(self._columns) if head is None), None)
        if column is None:
            raise HeadError(f"there is no room for another head than {', '.join(self._index)}: unload one")
        columns = tuple(loaded if i == column else head for i, head in enumerate(self._columns))
        shelf = _Shelf.of([loaded], [column], *self._sizes)
        return self._changed(columns, {**self._index, name: column}, (*self._shelves, shelf))

    def without_head(self, name: str) -> HeadBank:
        """In which it cannot be asked for any more; it stays for those who have."""
        index = {other: column for other, column in self._index.items() if other != name}
        return self._changed(self._columns, index, self._shelves)

    def vacated(self, columns: Sequence[int]) -> HeadBank:
        """Without the heads in these columns, which nobody asks for any more."""
        kept = tuple(None if i in columns else head for i, head in enumerate(self._columns))
        first, *others = self._shelves
        ups = {i: up for i, up in first.lowrank_up.items() if i not in columns}
        products = {i: product for i, product in first.products.items() if i not in columns}
        advantages = {i: weighted for i, weighted in first.advantages.items() if i not in columns}
        first = replace(first, lowrank_up=ups, products=products, advantages=advantages)
        shelves = [shelf for shelf in others if shelf.columns[0] not in columns]
        return self._changed(kept, self._index, (first, *shelves))

    def _changed(
        self,
        columns: tuple[LoadedHead | None, ...],
        index: Mapping[str, int],
        shelves: tuple[_Shelf, ...],
    ) -> HeadBank:
        changed = copy(self)
        changed._shelves, changed._stacked_up = shelves, None
        changed._describe(columns, index)
        return changed

    @classmethod
    def load(
        cls,
        folders: Sequence[Path],
        policy: PolicyIdentity,
        *,
        device: torch.device | str,
        dtype: torch.dtype,
        vocab_size: int | None = None,
        num_vacant: int = 0,
        vocabulary: Vocabulary | None = None,
    ) -> HeadBank:
        """Reads the heads and makes sure that each fits the policy. dtype: that of h; scalars stay float32.
        The others: see the constructor.

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
        return cls(
            heads,
            policy.hidden_size,
            device=device,
            vocab_size=vocab_size,
            num_vacant=num_vacant,
            vocabulary=vocabulary,
        )

    @torch.no_grad()
    def put_advantage(self, name: str, advantage: Advantage) -> None:
        """Gives a loaded head the weights of another advantage of its form and rank, in place: requests that
        are under way go on with them. Values and rewards stay.

        Raises:
            HeadError: no such head, or another form or size.
        """
        self.check([(name, 1.0)])
        index = self._index[name]
        shelf, held = self._shelf_of(index), self._columns[index]
        if held is None or type(held[0].advantage) is not type(advantage):
            raise HeadError(f"head {name!r} has an advantage of another form: load one of this form")
        adapters = shelf.lowrank if index in shelf.ranks else shelf.tied
        assert adapters is not None
        slot, rank = adapters.members.index(index), advantage.down.shape[0]
        pairs: list[tuple[Tensor, Tensor]] = [(adapters.down[slot, :rank], advantage.down)]
        if adapters.up is not None:
            pairs.append((adapters.up[slot, :, :rank], advantage.up))
        elif index in shelf.lowrank_up:
            mine = shelf.lowrank_up[index]
            pairs.append((mine, advantage.up[: len(mine)]))
        if any(mine.shape != new.shape for mine, new in pairs) or adapters.down[slot, rank:].any():
            raise HeadError(f"head {name!r} has an advantage of another size: load one of rank {rank}")
        for mine, new in pairs:
            mine.copy_(new)
        if index in shelf.advantages:
            *_, vocab_size, vocabulary = self._sizes
            assert vocabulary is not None
            activation = adapters.activations[slot]
            shelf.advantages[index] = _advantage(advantage, activation, vocab_size, vocabulary)
        self._stacked_up = None

    def check(self, heads: Sequence[tuple[str, float]], *, steering: bool = True) -> None:
        """Makes sure that a request may use these (name, weight) pairs; steering: its strength is not 0.

        Raises:
            HeadError: a head is not loaded, or is to steer and has no advantage.
        """
        for name, weight in heads:
            if name not in self._index:
                loaded = f"loaded are {', '.join(self._index)}" if self._index else "no head is loaded"
                raise HeadError(f"head {name!r} is not loaded: {loaded}")
            if steering and weight != 0 and not self.has_advantage[self._index[name]]:
                raise HeadError(f"head {name!r} has no advantage and cannot steer: use it at strength 0")

    def weights_row(self, heads: Sequence[tuple[str, float]]) -> list[float]:
        """The weight of every loaded head, times its manifest's scale; 0 for those not named. Length H."""
        row = [0.0] * len(self.names)
        for name, weight in heads:
            index = self._index[name]
            part = self.manifest(index).parts.advantage
            row[index] = weight * part.scale if part is not None else 0.0
        return row

    def tied_column(self, h: Tensor, weights: Tensor, active: Sequence[int]) -> Tensor | None:
        """g [G, d] with g Wᵀ = Σ wᵢ Aᵢ over the tied heads; None when no active head is tied.

        h: [G, d]. weights: f32[G, H] from weights_row. active: indices of the heads that any row uses.
        """
        total: Tensor | None = None
        for shelf, mine in self._active(active):
            column = shelf.tied.column(h, weights, mine) if shelf.tied else None
            if column is not None:
                total = column if total is None else total + column
        return total

    def lowrank_advantage(self, h: Tensor, weights: Tensor, active: Sequence[int]) -> Tensor | None:
        """Σ wᵢ Aᵢ over the low-rank heads, f32[G, V]; None when none is active. See tied_column."""
        total: Tensor | None = None
        for term in self._lowrank_terms(h, weights, active):
            total = term if total is None else total.add_(term)
        return total

    def _lowrank_terms(self, h: Tensor, weights: Tensor, active: Sequence[int]) -> Iterator[Tensor]:
        for shelf, members in self._active(active):
            for member, weighted in shelf.advantages.items():
                if member in members:
                    yield weighted(h.float(), weights[:, member])
        for shelf, members, inner in self._lowrank_columns(h, weights, active):
            assert shelf.lowrank is not None
            rank = shelf.lowrank.down.shape[1]
            for slot, member in enumerate(shelf.lowrank.members):
                if member in members:
                    yield shelf.products[member](inner[:, slot * rank : slot * rank + shelf.ranks[member]])

    def lowrank_factors(
        self, h: Tensor, weights: Tensor, active: Sequence[int]
    ) -> tuple[Tensor, Tensor] | None:
        """a [G, R] and U [V, R] with a Uᵀ = Σ wᵢ Aᵢ over the low-rank heads; None when none is active.

        What lowrank_advantage multiplies, for a kernel that does so itself; of a bank without a vocabulary.
        See tied_column.
        """
        columns, chosen = list[Tensor](), list[int]()
        for shelf, members, inner in self._lowrank_columns(h, weights, active):
            assert shelf.lowrank is not None
            rank = shelf.lowrank.down.shape[1]
            for slot, member in enumerate(shelf.lowrank.members):
                if member in members:
                    columns.append(inner[:, slot * rank : (slot + 1) * rank])
                    chosen.append(member)
        return (torch.cat(columns, 1), self._up_of(tuple(chosen))) if columns else None

    def _lowrank_columns(
        self, h: Tensor, weights: Tensor, active: Sequence[int]
    ) -> Iterator[tuple[_Shelf, Sequence[int], Tensor]]:
        """Of a bank without a vocabulary."""
        for shelf, mine in self._active(active):
            if shelf.lowrank is not None and not self.has_vocabulary:
                inner = shelf.lowrank.column(h, weights, mine)
                if inner is not None:
                    yield shelf, mine, inner

    def _active(self, active: Sequence[int]) -> Iterator[tuple[_Shelf, Sequence[int]]]:
        """Shelves, with those of the active columns that are theirs."""
        if len(self._shelves) == 1:
            yield self._shelves[0], active
            return
        for shelf in self._shelves:
            mine = tuple(column for column in active if self._shelf_of(column) is shelf)
            if mine:
                yield shelf, mine

    def _shelf_of(self, column: int) -> _Shelf:
        """That the head in a column stands on: the last one that has it, which its first head has left."""
        return next(shelf for shelf in reversed(self._shelves) if column in shelf.columns)

    def _up_of(self, members: tuple[int, ...]) -> Tensor:
        """U [V, R] of these low-rank heads side by side; kept until others are asked for."""
        if self._stacked_up is None or self._stacked_up[0] != members:
            ups = []
            for member in members:
                shelf = self._shelf_of(member)
                assert shelf.lowrank is not None
                ups.append(_pad(shelf.lowrank_up[member], 1, shelf.lowrank.down.shape[1]))
            self._stacked_up = members, torch.cat(ups, 1) if len(ups) > 1 else ups[0]
        return self._stacked_up[1]

    def values(self, h: Tensor) -> Tensor:
        """V(s) in standard units: h [B, d] -> f32[B, H], nan where a head has no value part, or one that
        remembers: see step."""
        return self._scalars(h, "values")

    def step(self, index: int, h: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        """V(s) in standard units f32[B] of a head whose value remembers, at the next states h [B, d] of B
        replies, and its memory f32[B, memory_sizes[index]] after them; state: before, 0 at a reply's s_0."""
        shelf = self._shelf_of(index)
        return shelf.values.step(shelf.columns.index(index), h, state)

    def remember(self, index: int, h: Tensor, state: Tensor) -> Tensor:
        """The memory [B, memory_sizes[index]] that `step` would give after each of h [B, T, d] in turn."""
        shelf = self._shelf_of(index)
        return shelf.values.remember(shelf.columns.index(index), h, state)

    def rewards(self, h: Tensor) -> Tensor:
        """Rewards in standard units of replies that end at h [B, d] -> f32[B, H], nan where there is none."""
        return self._scalars(h, "rewards")

    def _scalars(self, h: Tensor, kind: str) -> Tensor:
        first, *others = self._shelves
        out: Tensor = getattr(first, kind)(h)
        for shelf in others:
            out[:, shelf.columns[0]] = getattr(shelf, kind)(h)[:, 0]
        return out


def _advantage(
    advantage: Advantage, activation: str, vocab_size: int | None, vocabulary: Vocabulary
) -> Weighted:
    if isinstance(advantage, TiedAdvantage):
        up = vocabulary.project(advantage.up.float().T.contiguous()).T.contiguous()
    else:
        up = advantage.up[:vocab_size]
    return vocabulary.advantage(advantage.down, up, activation)


def _activation(manifest: Manifest) -> str:
    part = manifest.parts.advantage
    assert part is not None
    return part.activation


def _outer_product(up: Tensor, inner: Tensor) -> Tensor:
    return wide_product(inner.to(up.dtype), up)


def _stack(heads: Sequence[tuple[int, LoadedHead]], *, has_up: bool) -> _Adapters | None:
    """heads: those that have an advantage, with their columns."""
    members: list[int] = []
    chosen: list[Advantage] = []
    activations: list[str] = []
    for column, (head, manifest) in heads:
        assert head.advantage is not None
        members.append(column)
        chosen.append(head.advantage)
        activations.append(_activation(manifest))
    if not chosen:
        return None
    rank = -(-max(each.down.shape[0] for each in chosen) // WHOLE) * WHOLE
    down = torch.stack([_pad(each.down, 0, rank) for each in chosen])
    up = torch.stack([_pad(each.up, 1, rank) for each in chosen]) if has_up else None
    return _Adapters(tuple(members), torch.tensor(members, device=down.device), down, up, tuple(activations))


def _pad(matrix: Tensor, dim: int, size: int) -> Tensor:
    missing = list(matrix.shape)
    missing[dim] = size - matrix.shape[dim]
    return torch.cat([matrix, matrix.new_zeros(missing)], dim)


def _gather(
    parts: Sequence[tuple[Scalar | None, Manifest] | None],
    hidden_size: int,
    device: torch.device | str,
) -> _Scalars:
    weight = torch.zeros(len(parts), hidden_size, device=device)
    bias = torch.full((len(parts),), math.nan, device=device)
    others, remembering, has_linear = [], {}, False
    for index, given in enumerate(parts):
        part, manifest = given or (None, None)
        if part is None or manifest is None:
            continue
        mean, std = manifest.reward_mean, manifest.reward_std
        if isinstance(part, LinearScalar):
            weight[index], bias[index] = part.weight / std, (part.bias - mean) / std
            has_linear = True
        elif memory_of(part) is not None:
            assert isinstance(part, Remembering)
            remembering[index] = (part, mean, std)
        else:
            others.append((index, part, mean, std))
    return _Scalars(weight if has_linear else None, bias, tuple(others), remembering)


def _memory_size(part: Scalar | None) -> int:
    memory = memory_of(part)
    return 0 if memory is None else memory.state_size
