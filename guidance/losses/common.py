"""Losses' common parts: what a loss is and returns, sums and means over replies of unequal length."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F


@dataclass(frozen=True, slots=True)
class LossResult:
    """per_example: [B], to be averaged. metrics: scalars without gradient, averages over the batch."""

    per_example: Tensor
    metrics: dict[str, Tensor]


Loss = Callable[..., LossResult]


@dataclass(frozen=True, slots=True)
class Formula:
    """A loss, and options: the fields of its part's configuration that it reads, either itself, where its
    function has an argument of that name, or through what makes its arguments."""

    function: Loss
    options: tuple[str, ...] = ()

    def bind(self, config: object) -> Loss:
        """The function with the options of the configuration. Of the scores that it is called with it is
        handed those that it has an argument for; a score goes before an option of the same name."""
        names = inspect.signature(self.function).parameters
        options = {name: getattr(config, name) for name in self.options if name in names}

        def loss(**scores: Tensor) -> LossResult:
            return self.function(**options | {name: x for name, x in scores.items() if name in names})

        return loss


def keep(x: Tensor, mask: Tensor) -> Tensor:
    """x where the mask is true, 0 elsewhere. x: [B, T] or broadcast to it; mask: bool[B, T].

    Taken before any arithmetic: what stands in the padding, NaN too, reaches neither loss nor gradient.
    """
    return x.where(mask, x.new_zeros(()))


def masked_mean(x: Tensor, mask: Tensor) -> Tensor:
    """The mean over all true positions of the batch; 0 where there are none. x, mask: [B, T]. Returns [].

    By hand: x = (1, 2, 9), m = (1, 1, 0): 1.5.
    """
    return keep(x, mask).sum() / mask.sum().clamp(min=1)


def per_position(x: Tensor, mask: Tensor) -> Tensor:
    """One number per reply [B], or one per position [B, T], as [B, T], 0 off the mask (bool[B, T])."""
    return keep(x[:, None] if x.dim() == 1 else x, mask)


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
