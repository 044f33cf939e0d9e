"""The inner half of the heads' advantages, and their values, for rows that use different heads."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from trimtab.kernels.dispatch import choose_backend

ACTIVATIONS = ("identity", "silu")


def _reference(
    h: Tensor,
    weights: Tensor,
    down: Tensor,
    up: Tensor | None,
    activations: tuple[str, ...],
    value_weight: Tensor | None,
    value_bias: Tensor | None,
    active: tuple[int, ...],
) -> tuple[Tensor, Tensor | None]:
    h = h.float()
    num_heads, rank, hidden_size = down.shape
    columns = h.new_zeros(len(h), hidden_size if up is not None else num_heads * rank)
    for head in active:
        inner = F.linear(h, down[head].float())
        inner = F.silu(inner) if activations[head] == "silu" else inner
        weight = weights[:, head, None]
        inner = torch.where(weight != 0, inner * weight, 0)
        if up is not None:
            columns += F.linear(inner, up[head].float())
        else:
            columns[:, head * rank : (head + 1) * rank] = inner
    values = None if value_weight is None else F.linear(h, value_weight.float(), value_bias)
    return columns, values


def value_adapter(
    h: Tensor,
    weights: Tensor,
    down: Tensor,
    up: Tensor | None,
    activations: tuple[str, ...],
    value_weight: Tensor | None = None,
    value_bias: Tensor | None = None,
    active: tuple[int, ...] | None = None,
    backend: str | None = None,
) -> tuple[Tensor, Tensor | None]:
    """Hidden states to what the advantages' vocabulary-sized halves read, and to values.

    With `a_h = w_h φ_h(D_h h)` of each head: tied heads (`up` given) share one column `g = Σ_h U_h a_h`,
    low-rank heads keep theirs apart. Heads are added in order, and a row adds an exact zero for a head that
    it does not use.

    Args:
        h: [B, d].
        weights: f32[B, H], 0 where a row does not use the head.
        down: [H, r, d]. up: [H, d, r] of tied heads, None for low-rank ones.
        activations: φ of each head, "identity" or "silu".
        value_weight: [H, d], value_bias: f32[H]; None for no values.
        active: the heads that any row uses, ascending; None for all of them.
        backend: see `choose_backend`.

    Returns:
        f32[B, d] (tied) or f32[B, H·r] (low-rank, zero for heads that are not active); f32[B, H] or None.

    Raises:
        ValueError: an activation that does not exist.
    """
    for name in activations:
        if name not in ACTIVATIONS:
            raise ValueError(f"activation {name!r} does not exist: use one of {', '.join(ACTIVATIONS)}")
    active = tuple(range(len(down))) if active is None else active
    run = _BACKENDS[choose_backend(h.device, backend)]
    return run(h, weights, down, up, activations, value_weight, value_bias, active)


_BACKENDS = {"reference": _reference}
