"""Scale of an advantage: finds the multiple by which a unit of strength spends KL_PER_TOKEN nats a token."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from trimtab.guidance.features.source import FeatureSource
from trimtab.guidance.heads.forms import Advantage
from trimtab.guidance.losses.vocabulary_tiles import tile_rows
from trimtab.guidance.policy import Policy
from trimtab.guidance.text.encoding import EncodedReply
from trimtab.guidance.training.held_out import fetch_in_chunks

KL_PER_TOKEN = 0.02
MAX_OPTIMUM_SCALE = 1e3
"""Beyond which a tilt is too weak: its trained optimum spends a millionth of what a unit is to spend."""
_MAX_RMS = 1e3  # nats: with so much of Ā a tilt has picked its favourites, and more of it spends no more
_PRECISION = 1.005
_NUMBERS = 2**27  # of positions times vocabulary

MeanKL = Callable[[float], float]


@dataclass(frozen=True, slots=True)
class Scale:
    """scale: the manifest's. kl_per_token: nats that strength 1 then spends. is_weak: no multiple of the
    advantage spends KL_PER_TOKEN, and scale is 1."""

    scale: float
    kl_per_token: float
    is_weak: bool = False


def fit_scale(
    part: Advantage, features: FeatureSource, replies: Sequence[EncodedReply], *, is_tilt: bool
) -> Scale:
    """The scale by which strength 1 spends KL_PER_TOKEN: the mean of KL(π_β‖π₀) over the drawn positions of
    the replies, which should be the policy's own; of very many positions with a large vocabulary an even
    sample is read.

    is_tilt: the advantage was trained as a tilt, whose own units are nats; one that needs more than
    MAX_OPTIMUM_SCALE is too weak. The units of others are those of their rewards, and tell nothing.
    """
    policy = features.policy
    h = _positions(features, replies, most_positions(policy))
    lm_head = policy.lm_head.float()
    variance = _mean(part, policy, lm_head, h, _variance)

    def mean_kl(beta: float) -> float:
        return _mean(part, policy, lm_head, h, _kl_at(beta))

    scale = None
    if variance > 0:
        rms = math.sqrt(variance)
        limit = min(_MAX_RMS / rms, MAX_OPTIMUM_SCALE if is_tilt else math.inf)
        scale = solve_scale(mean_kl, rms, limit)
    return Scale(1.0, mean_kl(1.0), is_weak=True) if scale is None else Scale(scale, mean_kl(scale))


def most_positions(policy: Policy) -> int:
    """On how many the scale is sought, at most."""
    return max(1, _NUMBERS // policy.vocab_size)


def solve_scale(mean_kl: MeanKL, rms: float, limit: float) -> float | None:
    """The β ≤ limit at which mean_kl, which grows with β, is KL_PER_TOKEN; None where it stays below.

    rms: of Ā under the policy. Where a tilt is small KL = β² rms²/2, which is where to look first.

    By hand: KL = β² · 2 (rms 2): β² = 0.01, β = 0.1.
    """
    low = high = min(math.sqrt(2 * KL_PER_TOKEN) / rms, limit)
    if mean_kl(high) < KL_PER_TOKEN:
        while mean_kl(high) < KL_PER_TOKEN:
            if high >= limit:
                return None
            low, high = high, min(2 * high, limit)
    else:
        while mean_kl(low) > KL_PER_TOKEN:
            low, high = low / 2, low
    while high / low > _PRECISION:
        middle = math.sqrt(low * high)
        low, high = (middle, high) if mean_kl(middle) < KL_PER_TOKEN else (low, middle)
    return math.sqrt(low * high)


def _positions(features: FeatureSource, replies: Sequence[EncodedReply], most: int) -> Tensor:
    """h [N, d] where drawn tokens of the replies are predicted, evenly chosen where they are too many."""
    step = -(-sum(reply.num_drawn for reply in replies) // most)
    kept, before = [], 0
    for reply in fetch_in_chunks(features, replies):
        num = len(reply.tokens)
        kept.append(reply.h[-before % step : num : step])
        before += num
    return torch.cat(kept)


@torch.no_grad()
def _mean(
    part: Advantage,
    policy: Policy,
    lm_head: Tensor,
    h: Tensor,
    measure: Callable[[Tensor, Tensor], Tensor],
) -> float:
    """The mean over positions of measure(logits, advantage), [n, V] both -> [n]."""
    total, h = 0.0, h.to(policy.device)
    column, vocabulary = part.factors(h.float(), lm_head)
    size = tile_rows(policy.vocab_size)
    for piece, thin in zip(h.split(size), column.split(size), strict=True):
        total += measure(policy.logits(piece), thin @ vocabulary.T).double().sum().item()
    return total / len(h)


def _variance(logits: Tensor, advantage: Tensor) -> Tensor:
    probability = logits.softmax(-1)
    centred = advantage - (probability * advantage).sum(-1, keepdim=True)
    return (probability * centred.square()).sum(-1)


def _kl_at(beta: float) -> Callable[[Tensor, Tensor], Tensor]:
    def kl(logits: Tensor, advantage: Tensor) -> Tensor:
        tilt = (logits + beta * advantage).log_softmax(-1)
        return (tilt.exp() * (tilt - logits.log_softmax(-1))).sum(-1)

    return kl
