"""What heads read: h of the frozen policy at every position of a reply, computed once and kept."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Protocol

import torch
from torch import Tensor
from tqdm import tqdm

from trimtab.guidance.encoding import EncodedReply
from trimtab.guidance.policy import Policy, output_embedding_input


class FeatureSource(Protocol):
    """Where a trainer has its features from: kept in memory, kept on disk, or computed when asked for."""

    @property
    def policy(self) -> Policy: ...

    def get(self, replies: Sequence[EncodedReply]) -> list[Tensor]:
        """s_0 … s_T of each reply of T tokens: h [T+1, d] on the CPU, in the policy's dtype. s_{t−1} predicts
        y_t, and s_T is read after the reply's end."""
        ...


class FeatureCache:
    """Features by reply, so that heads trained on the same replies run the policy over them once."""

    def __init__(self, policy: Policy, *, batch_tokens: int = 4096, show_progress: bool = True) -> None:
        self.policy = policy
        self.batch_tokens = batch_tokens
        self.show_progress = show_progress
        self._features: dict[EncodedReply, Tensor] = {}

    def get(self, replies: Sequence[EncodedReply]) -> list[Tensor]:
        """s_0 … s_T of each reply of T tokens: h [T+1, d] on the CPU, in the policy's dtype. s_{t−1} predicts
        y_t, and s_T is read after the reply's end."""
        missing = [reply for reply in dict.fromkeys(replies) if reply not in self._features]
        with tqdm(
            total=len(missing), desc="features", unit="reply", disable=not self.show_progress or not missing
        ) as bar:
            for batch in _batches(missing, self.batch_tokens):
                self._features.update(zip(batch, _run(self.policy, batch), strict=True))
                bar.update(len(batch))
        return [self._features[reply] for reply in replies]


def _batches(replies: Sequence[EncodedReply], batch_tokens: int) -> Iterator[list[EncodedReply]]:
    """Batches of like length, longest first, of at most batch_tokens with padding (or of a single reply)."""
    batch: list[EncodedReply] = []
    for reply in sorted(replies, key=lambda reply: reply.num_tokens, reverse=True):
        if batch and (len(batch) + 1) * batch[0].num_tokens > batch_tokens:
            yield batch
            batch = []
        batch.append(reply)
    if batch:
        yield batch


@torch.no_grad()
def _run(policy: Policy, batch: Sequence[EncodedReply]) -> list[Tensor]:
    longest = max(reply.num_tokens for reply in batch)
    # Causal attention: what pads a row on its right does not reach the row, so no mask is needed.
    rows = [reply.prompt_ids + reply.reply_ids for reply in batch]
    padded = [ids + ids[-1:] * (longest - len(ids)) for ids in rows]
    # The logits are not needed: the output embedding gets a single position.
    with output_embedding_input(policy.model, lambda h: h[:, :1]) as seen:
        policy.model(input_ids=torch.tensor(padded, device=policy.device), use_cache=False)
    (h,) = seen
    return [
        h[row, len(reply.prompt_ids) - 1 : reply.num_tokens].to("cpu", copy=True)
        for row, reply in enumerate(batch)
    ]
