"""Sums over the positions of replies of unequal length."""

from __future__ import annotations

from torch import Tensor


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
