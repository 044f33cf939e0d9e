"""RMS norm of rows, alone or of the sum with a residual, in one launch."""

# mypy: allow-untyped-defs, allow-incomplete-defs

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor

from trimtab.kernels.dispatch import choose_backend, jit, tl, triton

BLOCK = 1024  # elements of a row that a program holds at a time
NUM_WARPS = 4


def _reference(x: Tensor, weight: Tensor, eps: float, residual: Tensor | None) -> tuple[Tensor, Tensor]:
    total = x if residual is None else x + residual
    wide = total.float()
    scaled = wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + eps)
    return total, weight * scaled.to(x.dtype)


@jit
def _sum(x, residual, at, inside, adds: tl.constexpr):
    values = tl.load(x + at, mask=inside, other=0.0)
    if adds:
        more = tl.load(residual + at, mask=inside, other=0.0)
        values = (values.to(tl.float32) + more.to(tl.float32)).to(values.dtype)
    return values


@partial(jit, unspecialised=("x_stride", "residual_stride"))
def _rows(
    x, residual, weight, total, out, x_stride, residual_stride,
    eps: tl.constexpr, size: tl.constexpr, adds: tl.constexpr, block: tl.constexpr,
):  # fmt: skip
    """One program per row, which it reads twice: the second time from the cache next to it."""
    row = tl.program_id(0).to(tl.int64)
    x += row * x_stride
    residual += row * residual_stride
    squares = tl.zeros((block,), tl.float32)
    for start in tl.static_range(0, size, block):
        at = start + tl.arange(0, block)
        inside = at < size
        values = _sum(x, residual, at, inside, adds)
        if adds:
            tl.store(total + row * size + at, values, mask=inside)
        wide = values.to(tl.float32)
        squares += wide * wide
    scale = tl.rsqrt(tl.sum(squares, 0) / size + eps)
    for start in tl.static_range(0, size, block):
        at = start + tl.arange(0, block)
        inside = at < size
        values = _sum(x, residual, at, inside, adds)
        scaled = (values.to(tl.float32) * scale).to(values.dtype).to(tl.float32)
        gain = tl.load(weight + at, mask=inside, other=0.0).to(tl.float32)
        tl.store(out + row * size + at, (gain * scaled).to(values.dtype), mask=inside)


def _launch(x: Tensor, weight: Tensor, eps: float, residual: Tensor | None) -> tuple[Tensor, Tensor]:
    assert x.stride(1) == weight.stride(0) == 1
    out = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    total = x if residual is None else torch.empty_like(out)
    other = x if residual is None else residual
    size = x.shape[1]
    block = min(BLOCK, triton.next_power_of_2(size))
    _rows[len(x),](
        x, other, weight, total, out, x.stride(0), other.stride(0), eps=eps, size=size,
        adds=residual is not None, block=block, num_warps=NUM_WARPS,
    )  # fmt: skip
    return total, out


def rms_norm(
    x: Tensor, weight: Tensor, eps: float, residual: Tensor | None = None, backend: str | None = None
) -> tuple[Tensor, Tensor]:
    """`t = x + residual` and `weight · t / sqrt(mean(t²) + eps)`, both [T, d] in x's type (B. Zhang and
    R. Sennrich, Root Mean Square Layer Normalization, 2019).

    Rounds where transformers' Llama does: the sum, the normalised row, and the product. A row's bits do not
    depend on the others.

    Args:
        x, residual: [T, d]; without a residual t is x itself. weight: [d], of x's type.
        backend: see `choose_backend`.
    """
    assert x.dtype == weight.dtype
    return _BACKENDS[choose_backend(x.device, backend)](x, weight, eps, residual)


_BACKENDS = {"reference": _reference, "triton": _launch}
