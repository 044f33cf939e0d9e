"""Batches of replies: laid end to end where a position costs a vocabulary, padded where it costs a number."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from trimtab.guidance.features.source import FeatureSource
from trimtab.guidance.text.encoding import EncodedReply


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
    i64[len(replies)], their numbers."""
    return {
        "h": torch.cat([reply.h[: len(reply.tokens)] for reply in replies]),
        "tokens": torch.cat([reply.tokens for reply in replies]),
        "lengths": torch.tensor([len(reply.tokens) for reply in replies]),
    }


def pad(per_position: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
    """[N] or [N, K] of replies laid end to end, as [B, T] or [B, T, K] with zeros after each reply, and the
    mask bool[B, T] of what is none. lengths: i64[B], summing to N."""
    mask = torch.arange(int(lengths.max()), device=lengths.device) < lengths[:, None]
    padded = per_position.new_zeros(*mask.shape, *per_position.shape[1:])
    padded[mask] = per_position
    return padded, mask
