"""losses.log_ratio for advantages that are a product, in one pass over the vocabulary and with one buffer."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

Logits = Callable[[Tensor], Tensor]
ROWS_AT_ONCE = 256


def fused_log_ratio(
    logits: Logits, h: Tensor, column: Tensor, vocabulary: Tensor, tokens: Tensor
) -> tuple[Tensor, Tensor]:
    """ρ = log π₁(y) − log π₀(y) with π₁ ∝ π₀ e^A, A = column · vocabularyᵀ, and log π₀(y), without gradient.

    The same as log_ratio(logits(h), column @ vocabulary.T, tokens). Autograd would keep five tensors [N, V]
    for it and pass over them a dozen times; here π₁ alone is kept, from which both gradients are products:
    ∂ρ/∂column = vocabulary[y] − π₁ · vocabulary, and Σ g ∂ρ/∂vocabulary = Σ g (e_y − π₁) columnᵀ.

    logits: base's z f32[n, V] of h [n, d]. column: f32[N, r]. vocabulary: f32[V, r]. tokens: i64[N], y.
    Returns two f32[N]. Under autocast the products with the vocabulary are taken, and π₁ kept, in its dtype.

    By hand: π₀ = (½, ½), column = (ln 3), vocabulary = ((1), (0)), y = 0: π₁ = (¾, ¼),
    ρ = ln 1.5 = 0.4054651, ∂ρ/∂column = 1 − ¾ = ¼,
    ∂ρ/∂vocabulary = ln 3 · ((1 − ¾), (−¼)) = ((0.2746531), (−0.2746531)).
    """
    rho, base = _FusedLogRatio.apply(logits, h, column, vocabulary, tokens)  # type: ignore[no-untyped-call]
    return rho, base


class _FusedLogRatio(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, logits: Logits, h: Tensor, column: Tensor, vocabulary: Tensor, tokens: Tensor
    ) -> tuple[Tensor, Tensor]:
        kind = h.device.type
        dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else torch.float32
        with torch.autocast(kind, enabled=False):
            u = vocabulary.to(dtype)
            tilt = torch.empty(len(h), len(vocabulary), dtype=dtype, device=h.device)  # π₁ [N, V]
            rho, base = tokens.new_empty(2, len(h), dtype=torch.float32)
            for start in range(0, len(h), ROWS_AT_ONCE):
                rows = slice(start, start + ROWS_AT_ONCE)
                z, y = logits(h[rows]), tokens[rows, None]
                base[rows] = _log_probability(z, z.softmax(-1), y)
                _add_product(z, column[rows].to(dtype), u)
                probability = z.softmax(-1)
                rho[rows] = _log_probability(z, probability, y) - base[rows]
                tilt[rows] = probability
        ctx.save_for_backward(tilt, column, vocabulary, tokens)
        ctx.mark_non_differentiable(base)
        return rho, base

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
        tilt, column, vocabulary, tokens = ctx.saved_tensors
        grad_column = grad_vocabulary = None
        if ctx.needs_input_grad[2]:
            mean = (tilt @ vocabulary.to(tilt.dtype)).float()
            grad_column = grad[:, None] * (vocabulary[tokens] - mean)
        if ctx.needs_input_grad[3]:
            weighted = grad[:, None] * column
            grad_vocabulary = -(tilt.T @ weighted.to(tilt.dtype)).float()
            grad_vocabulary.index_add_(0, tokens, weighted)
        return None, None, grad_column, grad_vocabulary, None


def _add_product(z: Tensor, column: Tensor, vocabulary: Tensor) -> None:
    if column.dtype == z.dtype:
        z.addmm_(column, vocabulary.T)
    else:
        z += column @ vocabulary.T


def _log_probability(z: Tensor, probability: Tensor, y: Tensor) -> Tensor:
    """log softmax(z)[y], [n], from the softmax itself. y: i64[n, 1].

    By way of the likeliest token, whose probability is at least 1/V: that of y may be too small for a float.
    """
    top, at = z.max(-1, keepdim=True)
    return (z.gather(1, y) - top + probability.gather(1, at).log())[:, 0]
