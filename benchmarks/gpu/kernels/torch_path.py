"""The same jobs in torch's own ops, as an engine without kernels of its own would do them."""

from __future__ import annotations

import torch
from torch import Tensor


def sample(logits: Tensor) -> Tensor:
    """A token per row at temperature 1, by exponential noise, which needs no host wait."""
    return logits.softmax(1).div_(torch.empty_like(logits).exponential_()).argmax(1)


def sample_guided(logits: Tensor, advantage: Tensor, beta: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Token, its log-probability under tilt and base, and the KL between them."""
    base = logits.log_softmax(1)
    weight = base.exp()
    shift = beta[:, None] * (advantage - (weight * advantage).sum(1, keepdim=True))
    guided = (logits + shift).log_softmax(1)
    probabilities = guided.exp()
    kl = (probabilities * (guided - base)).sum(1)
    token = (probabilities / torch.empty_like(probabilities).exponential_()).argmax(1)
    at = token[:, None]
    return token, guided.gather(1, at)[:, 0], base.gather(1, at)[:, 0], kl


def sample_truncated(
    logits: Tensor, min_p: Tensor | None, top_k: Tensor | None, top_p: Tensor | None
) -> Tensor:
    """min-p, top-k and top-p by one full sort per row."""
    values, order = logits.sort(1, descending=True)
    if min_p is not None:
        values = values.masked_fill(values < values[:, :1] + min_p.log()[:, None], -torch.inf)
    if top_k is not None:
        place = torch.arange(values.shape[1], device=values.device)
        is_cut = (place >= top_k[:, None]) & (top_k > 0)[:, None]
        values = values.masked_fill(is_cut, -torch.inf)
    if top_p is not None:
        probabilities = values.softmax(1)
        before = probabilities.cumsum(1) - probabilities
        values = values.masked_fill(before >= top_p[:, None], -torch.inf)
    return order.gather(1, sample(values)[:, None])[:, 0]
