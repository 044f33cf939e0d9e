"""The inner half of the heads' advantages, and the heads' values, for rows that use different heads."""

# mypy: allow-untyped-defs, allow-incomplete-defs

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from trimtab.kernels.dispatch import choose_backend, jit, tl, triton

ACTIVATIONS = ("identity", "silu")

# Rows, columns and summands of one program; fixed, so that no row's sums depend on the batch around it.
BLOCK_B, BLOCK_N, BLOCK_K = 16, 16, 128


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
    if value_weight is None:
        return columns, None
    return columns, F.linear(h, value_weight.float(), None if value_bias is None else value_bias.float())


@jit
def _product(
    x, x_stride, rows, matrix, columns, num_rows, num_columns, total,
    depth: tl.constexpr, block_k: tl.constexpr,
):  # fmt: skip
    """total + x matrixᵀ at the given rows of x [·, depth] and rows of matrix [num_columns, depth]."""
    for start in range(0, depth, block_k):
        k = start + tl.arange(0, block_k)
        inside = (k < depth)[None, :]
        left = tl.load(
            x + rows[:, None] * x_stride + k[None, :], mask=(rows < num_rows)[:, None] & inside, other=0.0
        )
        right = tl.load(
            matrix + columns[:, None] * depth + k[None, :],
            mask=(columns < num_columns)[:, None] & inside,
            other=0.0,
        )
        if left.dtype != right.dtype:
            left, right = left.to(tl.float32), right.to(tl.float32)
        total = tl.dot(left, tl.trans(right), total, input_precision="ieee")
    return total


@jit
def _down(
    h, weights, down, inner, num_rows, h_stride, weights_stride, num_heads: tl.constexpr, rank: tl.constexpr,
    depth: tl.constexpr, silu_heads: tl.constexpr, block_b: tl.constexpr, block_n: tl.constexpr,
    block_k: tl.constexpr,
):  # fmt: skip
    """inner[b, h, :] = w_bh φ_h(D_h h_b); exactly 0 where w_bh is 0. Bit h of silu_heads: φ_h is SiLU."""
    head = tl.program_id(1)
    rows = tl.program_id(0).to(tl.int64) * block_b + tl.arange(0, block_b)
    columns = tl.program_id(2) * block_n + tl.arange(0, block_n)
    weight = tl.load(weights + rows * weights_stride + head, mask=rows < num_rows, other=0.0)
    total = tl.zeros((block_b, block_n), tl.float32)
    if tl.max(tl.abs(weight), 0) > 0:
        total = _product(
            h, h_stride, rows, down + head * rank * depth, columns, num_rows, rank, total, depth, block_k
        )
        if (silu_heads >> head) & 1:
            total = total / (1.0 + tl.exp(-total))
        total = tl.where(weight[:, None] != 0, total * weight[:, None], 0.0)
    tl.store(
        inner + (rows[:, None] * num_heads + head) * rank + columns[None, :],
        total,
        mask=(rows < num_rows)[:, None] & (columns < rank)[None, :],
    )


@jit
def _up(
    inner, weights, up, out, num_rows, weights_stride, num_heads: tl.constexpr, rank: tl.constexpr,
    width: tl.constexpr, block_b: tl.constexpr, block_n: tl.constexpr, block_k: tl.constexpr,
):  # fmt: skip
    """out = Σ_h inner_h U_hᵀ, the heads in order."""
    rows = tl.program_id(0).to(tl.int64) * block_b + tl.arange(0, block_b)
    columns = tl.program_id(1) * block_n + tl.arange(0, block_n)
    total = tl.zeros((block_b, block_n), tl.float32)
    for head in range(num_heads):
        weight = tl.load(weights + rows * weights_stride + head, mask=rows < num_rows, other=0.0)
        if tl.max(tl.abs(weight), 0) > 0:
            mine = inner + head * rank
            theirs = up + head * width * rank
            total = _product(
                mine, num_heads * rank, rows, theirs, columns, num_rows, width, total, rank, block_k
            )
    there = (rows < num_rows)[:, None] & (columns < width)[None, :]
    tl.store(out + rows[:, None] * width + columns[None, :], total, mask=there)


@jit
def _values(
    h, value_weight, value_bias, out, num_rows, h_stride, num_heads: tl.constexpr, depth: tl.constexpr,
    block_b: tl.constexpr, block_n: tl.constexpr, block_k: tl.constexpr,
):  # fmt: skip
    rows = tl.program_id(0).to(tl.int64) * block_b + tl.arange(0, block_b)
    columns = tl.program_id(1) * block_n + tl.arange(0, block_n)
    total = tl.zeros((block_b, block_n), tl.float32)
    total = _product(h, h_stride, rows, value_weight, columns, num_rows, num_heads, total, depth, block_k)
    total += tl.load(value_bias + columns, mask=columns < num_heads, other=0.0)[None, :]
    there = (rows < num_rows)[:, None] & (columns < num_heads)[None, :]
    tl.store(out + rows[:, None] * num_heads + columns[None, :], total, mask=there)


def _launch(
    h: Tensor,
    weights: Tensor,
    down: Tensor,
    up: Tensor | None,
    activations: tuple[str, ...],
    value_weight: Tensor | None,
    value_bias: Tensor | None,
    active: tuple[int, ...],
) -> tuple[Tensor, Tensor | None]:
    assert h.stride(1) == weights.stride(1) == 1
    num_rows, num_heads, rank, width = len(h), *down.shape
    row_blocks = triton.cdiv(num_rows, BLOCK_B)
    blocks = {"block_b": BLOCK_B, "block_n": BLOCK_N, "block_k": BLOCK_K}
    down = down.contiguous()
    silu_heads = sum(1 << head for head in range(num_heads) if activations[head] == "silu")
    columns = inner = h.new_empty(num_rows, num_heads * rank, dtype=torch.float32)
    _down[row_blocks, num_heads, triton.cdiv(rank, BLOCK_N)](
        h, weights, down, inner, num_rows, h.stride(0), weights.stride(0),
        num_heads=num_heads, rank=rank, depth=width, silu_heads=silu_heads, **blocks,
    )  # fmt: skip
    if up is not None:
        columns = h.new_empty(num_rows, width, dtype=torch.float32)
        _up[row_blocks, triton.cdiv(width, BLOCK_N)](
            inner, weights, up.contiguous(), columns, num_rows, weights.stride(0),
            num_heads=num_heads, rank=rank, width=width, **blocks,
        )  # fmt: skip
    if value_weight is None:
        return columns, None
    values = h.new_empty(num_rows, num_heads, dtype=torch.float32)
    bias = torch.zeros_like(values[0]) if value_bias is None else value_bias
    _values[row_blocks, triton.cdiv(num_heads, BLOCK_N)](
        h, value_weight.contiguous(), bias, values, num_rows, h.stride(0),
        num_heads=num_heads, depth=width, **blocks,
    )  # fmt: skip
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
        value_weight: [H, d], value_bias: f32[H]; None for no values, or no bias.
        active: the heads that have a weight in any row, if the host knows them; None for all.
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


_BACKENDS = {"reference": _reference, "triton": _launch}
