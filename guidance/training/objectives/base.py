"""Objective: makes a batch of items, and of that what a loss takes; one module per kind of rows."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from trimtab.guidance.features.source import FeatureSource
from trimtab.guidance.heads.forms import Head
from trimtab.guidance.text.encoding import EncodedReply
from trimtab.guidance.training.config import TrainConfig

Scores = dict[str, Tensor]


class Objective(nn.Module):
    """Its parameters are those that are trained: of one part of `head`, and of what only training needs.

    collate(items) -> a batch by name, features fetched through `features`; forward(**batch) -> the loss's
    arguments by name, and metrics: scalars without gradient, averages over the batch.
    """

    def __init__(self, head: Head, config: TrainConfig, features: FeatureSource) -> None:
        super().__init__()
        self.config = config
        self.features = features
        self.policy = features.policy

    def prepare(self, items: Sequence[Any]) -> None:
        """What is done once, before training, with all items that are trained on."""

    def figures(self) -> Scores:
        """Measured on the last batch where figures are logged: what would cost too much in every step."""
        return {}

    def prepare_held_out(self, items: Sequence[Any]) -> None:
        """What is done once with items whose loss is only measured."""

    def forget(self, items: Sequence[Any]) -> None:
        """Makes the trained part one that says the same of everything: an advantage and a reward 0, a value
        what fits the items, which are trained on, best."""
        self.clear()
        self.prepare(items)

    @torch.no_grad()
    def clear(self) -> None:
        """All that is trained says 0."""
        for name, parameter in self.named_parameters():
            if name.rpartition(".")[2] in ("up", "weight", "bias"):
                parameter.zero_()

    @abstractmethod
    def collate(self, items: Sequence[Any]) -> dict[str, Tensor]: ...


@dataclass(frozen=True, slots=True)
class ReplyFeatures:
    """h: [T+1, d], s_0 … s_T. tokens: the drawn ones, i64[T], y_1 … y_T; or of a cut reply i64[T−1], since
    nobody drew the token that was put at its end."""

    h: Tensor
    tokens: Tensor


def fetch(features: FeatureSource, replies: Sequence[EncodedReply]) -> list[ReplyFeatures]:
    """The replies with their features and drawn tokens."""
    return [
        ReplyFeatures(h, torch.tensor(reply.reply_ids[: reply.num_drawn]))
        for h, reply in zip(features.get(replies), replies, strict=True)
    ]


def lay_out(replies: Sequence[ReplyFeatures]) -> dict[str, Tensor]:
    """h [N, d] where each drawn token is predicted, tokens i64[N], the drawn ones, lengths
    i64[len(replies)], their numbers: end to end, for what costs a vocabulary at each position; see pad."""
    return {
        "h": torch.cat([reply.h[: len(reply.tokens)] for reply in replies]),
        "tokens": torch.cat([reply.tokens for reply in replies]),
        "lengths": torch.tensor([len(reply.tokens) for reply in replies]),
    }


def pad(per_position: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
    """[N] or [N, K] of replies laid end to end, as [B, T] or [B, T, K] with zeros after each reply, and the
    mask bool[B, T] of what is none; for what costs a number at each. lengths: i64[B], summing to N."""
    mask = torch.arange(int(lengths.max()), device=lengths.device) < lengths[:, None]
    padded = per_position.new_zeros(*mask.shape, *per_position.shape[1:])
    padded[mask] = per_position
    return padded, mask
