"""Feature sources: h of the frozen policy at the positions of replies, which heads read, kept in memory or
computed when asked for. `trimtab.guidance.features.store` keeps it on disk."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Protocol

import torch
from torch import Tensor
from tqdm import tqdm

from trimtab.guidance.errors import PolicyError
from trimtab.guidance.policy import Policy, output_embedding_input
from trimtab.guidance.text.encoding import EncodedReply

Positions = Sequence[Sequence[int]]
"""Of each reply, ascending: t of the wanted s_t, 0 … T."""
Extract = Callable[[Sequence[EncodedReply], Positions | None], Iterator[tuple[int, Tensor]]]
"""Runs the policy over replies: (index of a reply, h [len(positions), d] on the CPU), in any order. Without
positions all are read: h [T+1, d]."""


@dataclass(frozen=True, slots=True)
class Steps:
    """Some of a reply's s_0 … s_{T−1}, ascending. h: [k, d]. at: i64[k], the t of each s_t, which predicts
    y_{t+1}."""

    h: Tensor
    at: Tensor


class FeatureSource(Protocol):
    """Where a trainer has its features from: kept in memory, kept on disk, or computed when asked for.

    Ask for no more than a method reads: a source on disk may hold only some positions, and raises DataError
    when asked for others. What is returned is not to be written to.
    """

    @property
    def policy(self) -> Policy: ...

    def prepare(self, replies: Sequence[EncodedReply]) -> None:
        """Told before training which replies will be asked for: what can be done or refused early is."""
        ...

    def get(self, replies: Sequence[EncodedReply]) -> list[Tensor]:
        """s_0 … s_T of each reply of T tokens: h [T+1, d] on the CPU, in the policy's dtype. s_{t−1} predicts
        y_t, and s_T is read after the reply's end."""
        ...

    def last(self, replies: Sequence[EncodedReply]) -> Tensor:
        """s_T of each reply: h [len(replies), d]. All that a reward part reads."""
        ...

    def steps(self, replies: Sequence[EncodedReply]) -> list[Steps]:
        """The s_t of each reply that this source holds: all, or a sample of those that predict a drawn token.
        For methods whose loss is a mean over positions, each on its own."""
        ...


class FeatureCache:
    """Features by reply in memory, so that heads trained on the same replies run the policy over them once.

    extract: what runs the policy; by default its own forward, in padded batches of batch_tokens.
    """

    def __init__(
        self,
        policy: Policy,
        extract: Extract | None = None,
        *,
        batch_tokens: int = 4096,
        show_progress: bool = True,
    ) -> None:
        self.policy = policy
        self.show_progress = show_progress
        self._extract = extract or own_forward(policy, batch_tokens)
        self._features: dict[EncodedReply, Tensor] = {}

    def prepare(self, replies: Sequence[EncodedReply]) -> None:
        """See FeatureSource; runs the policy over those that are new, at once."""
        missing = [reply for reply in dict.fromkeys(replies) if reply not in self._features]
        if missing:
            bar = tqdm(total=len(missing), desc="features", unit="reply", disable=not self.show_progress)
            with bar:
                for index, h in self._extract(missing, None):
                    self._features[missing[index]] = h
                    bar.update()

    def get(self, replies: Sequence[EncodedReply]) -> list[Tensor]:
        """See FeatureSource."""
        self.prepare(replies)
        return [self._features[reply] for reply in replies]

    def last(self, replies: Sequence[EncodedReply]) -> Tensor:
        """See FeatureSource."""
        return torch.stack([h[-1] for h in self.get(replies)])

    def steps(self, replies: Sequence[EncodedReply]) -> list[Steps]:
        """See FeatureSource; all of them."""
        return [all_steps(h) for h in self.get(replies)]


class StreamedFeatures:
    """Features computed when asked for and not kept, for replies whose features would not fit anywhere."""

    def __init__(self, policy: Policy, extract: Extract | None = None, *, batch_tokens: int = 4096) -> None:
        self.policy = policy
        self._extract = extract or own_forward(policy, batch_tokens)

    def prepare(self, replies: Sequence[EncodedReply]) -> None:
        """See FeatureSource; nothing is done early."""

    def get(self, replies: Sequence[EncodedReply]) -> list[Tensor]:
        """See FeatureSource."""
        return self._run(replies, None)

    def last(self, replies: Sequence[EncodedReply]) -> Tensor:
        """See FeatureSource."""
        ends = {reply: (len(reply.reply_ids),) for reply in replies}
        return torch.cat(self._run(replies, ends))

    def steps(self, replies: Sequence[EncodedReply]) -> list[Steps]:
        """See FeatureSource; all of them."""
        return [all_steps(h) for h in self.get(replies)]

    def _run(
        self, replies: Sequence[EncodedReply], positions: Mapping[EncodedReply, Sequence[int]] | None
    ) -> list[Tensor]:
        """A reply that is asked for twice is run once."""
        different = list(dict.fromkeys(replies))
        wanted = None if positions is None else [positions[reply] for reply in different]
        found = {different[index]: h for index, h in self._extract(different, wanted)}
        return [found[reply] for reply in replies]


def all_steps(h: Tensor) -> Steps:
    """s_0 … s_{T−1} of h [T+1, d]."""
    return Steps(h[:-1], torch.arange(len(h) - 1))


def check_numbers(h: Tensor, name: str) -> None:
    """Raises PolicyError where hidden states are none, of which nothing can be learned."""
    if not torch.isfinite(h).all():
        raise PolicyError(
            f"{name} computes what is no number (NaN or infinity): one of its weights is damaged"
        )


def own_forward(policy: Policy, batch_tokens: int = 4096) -> Extract:
    """The policy's own forward over padded batches of batch_tokens."""
    return partial(_extract, policy, batch_tokens)


def _extract(
    policy: Policy, batch_tokens: int, replies: Sequence[EncodedReply], positions: Positions | None = None
) -> Iterator[tuple[int, Tensor]]:
    for batch in _batches(replies, batch_tokens):
        for index, h in zip(batch, _run(policy, [replies[i] for i in batch]), strict=True):
            wanted = h if positions is None else h[list(positions[index])]
            yield index, wanted.to("cpu", copy=True)


def _batches(replies: Sequence[EncodedReply], batch_tokens: int) -> Iterator[list[int]]:
    """Indices by batches of like length, longest first, of at most batch_tokens with padding (or one)."""
    batch: list[int] = []
    for index in sorted(range(len(replies)), key=lambda index: replies[index].num_tokens, reverse=True):
        if batch and (len(batch) + 1) * replies[batch[0]].num_tokens > batch_tokens:
            yield batch
            batch = []
        batch.append(index)
    if batch:
        yield batch


@torch.no_grad()
def _run(policy: Policy, batch: Sequence[EncodedReply]) -> list[Tensor]:
    """h [T+1, d] of each, views of what is on the policy's device."""
    longest = max(reply.num_tokens for reply in batch)
    # Causal attention: what pads a row on its right does not reach the row, so no mask is needed.
    rows = [reply.prompt_ids + reply.reply_ids for reply in batch]
    padded = [ids + ids[-1:] * (longest - len(ids)) for ids in rows]
    # The logits are not needed: the output embedding gets a single position.
    with output_embedding_input(policy.model, lambda h: h[:, :1]) as seen:
        policy.model(input_ids=torch.tensor(padded, device=policy.device), use_cache=False)
    (h,) = seen
    check_numbers(h, policy.identity.base_model.name)
    return [h[row, len(reply.prompt_ids) - 1 : reply.num_tokens] for row, reply in enumerate(batch)]
