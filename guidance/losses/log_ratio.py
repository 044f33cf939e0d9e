"""The log-ratio of the tilt to the base, by which a head is trained without a reference model."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F


def log_ratio(logits: Tensor, advantage: Tensor, tokens: Tensor) -> tuple[Tensor, Tensor]:
    """ρ = log π₁(y) − log π₀(y) with π₁ ∝ π₀ e^Δ, and log π₀(y).

    logits: [N, V] of the base. advantage: [N, V], Δ; a constant added to a row changes nothing.
    tokens: i64[N], y. Returns two [N].

    By hand: π₀ = (½, ½), Δ = (ln 3, 0), y = 0: π₁ = (¾, ¼), ρ = ln ¾ − ln ½ = ln 1.5 = 0.4054651.
    """
    base = -F.cross_entropy(logits, tokens, reduction="none")
    tilted = -F.cross_entropy(logits + advantage, tokens, reduction="none")
    return tilted - base, base


def sum_by_reply(per_token: Tensor, lengths: Tensor) -> Tensor:
    """R = Σ_t ρ_t. per_token: [N], replies laid end to end; lengths: i64[B], summing to N. Returns [B].

    By hand: (1, 2, 3) with lengths (2, 1) gives (3, 3).
    """
    reply = torch.repeat_interleave(torch.arange(len(lengths), device=lengths.device), lengths)
    return per_token.new_zeros(len(lengths)).index_add(0, reply, per_token)
