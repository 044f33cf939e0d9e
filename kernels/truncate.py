"""min-p, top-k and top-p as one threshold per row on the guided logits."""

from __future__ import annotations

import torch
from torch import Tensor

BINS_PER_NAT = 32  # of the histogram that finds a nucleus, in nats at the row's temperature
NUM_BINS = 1024


def truncation_threshold(
    guided_logits: Tensor,
    temperature: Tensor,
    min_p: Tensor | None = None,
    top_k: Tensor | None = None,
    top_p: Tensor | None = None,
) -> Tensor:
    """The smallest guided logit that a row may draw.

    On the distribution at the row's temperature: min-p keeps tokens with at least min_p times the probability
    of the likeliest; of these top-k keeps the k likeliest; of these, renormalised, top-p keeps the fewest
    likeliest tokens with a mass of at least top_p. Ties at the threshold are all kept.

    Args:
        guided_logits: f32[B, V]; −inf marks a masked token.
        temperature: f32[B]; rows at 0 are not truncated.
        min_p: f32[B], 0 is off. top_k: i64[B], 0 is off. top_p: f32[B], 1 is off.

    Returns:
        f32[B]: tokens with `guided_logits >= threshold` may be drawn; −inf where nothing is cut.
    """
    threshold = torch.full_like(temperature, -torch.inf)
    if min_p is not None:
        threshold = guided_logits.amax(1) + temperature * min_p.log()
    if top_k is not None:
        rows = ((top_k > 0) & (top_k < guided_logits.shape[1])).nonzero()[:, 0]
        if len(rows):
            smallest = _kth_largest(guided_logits[rows], top_k[rows])
            threshold[rows] = torch.maximum(threshold[rows], smallest)
    if top_p is not None:
        rows = ((top_p < 1) & (temperature > 0)).nonzero()[:, 0]
        if len(rows):
            threshold[rows] = _nucleus(guided_logits[rows], temperature[rows], threshold[rows], top_p[rows])
    return threshold.masked_fill_(temperature == 0, -torch.inf)


def _kth_largest(logits: Tensor, k: Tensor) -> Tensor:
    return logits.topk(int(k.max())).values.gather(1, (k - 1)[:, None])[:, 0]


def _nucleus(logits: Tensor, temperature: Tensor, threshold: Tensor, top_p: Tensor) -> Tensor:
    """The largest threshold [B] that keeps top_p of the mass that the given threshold keeps.

    A histogram over the logits says in which bin the mass is reached; only that bin's tokens are sorted.
    """
    top = logits.amax(1, keepdim=True)
    scaled = ((logits - top) / temperature[:, None]).nan_to_num_(nan=0.0, neginf=-torch.inf)
    weight = torch.exp(scaled.double()).masked_fill_(logits < threshold[:, None], 0)
    target = top_p.double()[:, None] * weight.sum(1, keepdim=True)

    bins = scaled.mul_(-BINS_PER_NAT).clamp_(max=NUM_BINS - 1).long()
    mass = weight.new_zeros(len(logits), NUM_BINS).scatter_add_(1, bins, weight).cumsum_(1)
    reached = (mass < target).sum(1, keepdim=True).clamp_(max=NUM_BINS - 1)
    outside = bins != reached
    most = int((~outside).sum(1).max())

    values, tokens = logits.masked_fill(outside, -torch.inf).topk(most)
    above = torch.where(reached > 0, mass.gather(1, (reached - 1).clamp_(min=0)), 0)
    mass = weight.masked_fill_(outside, 0).gather(1, tokens).cumsum_(1).add_(above)
    last = (mass < target).sum(1, keepdim=True).clamp_(max=most - 1)
    return torch.maximum(threshold, values.gather(1, last)[:, 0])
