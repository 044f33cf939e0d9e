"""Value adapter: computes heads' inner halves and values, for rows that use different heads."""

# mypy: allow-untyped-defs, allow-incomplete-defs

from __future__ import annotations

from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from trimtab.kernels.dispatch import choose_backend, jit, tl, triton

ACTIVATIONS = ("identity", "silu")

# Rows, columns and summands of one program, and into how many parts the summands are cut, so that few rows
# keep a GPU busy; fixed, so that no row's sums depend on the batch around it.
BLOCK_B, BLOCK_N, BLOCK_K, NUM_PARTS = 16, 16, 128, 16
BLOCK_FINISH = 128


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
    x, x_stride, rows, matrix, columns, num_rows, num_columns, total, start, stop,
    depth: tl.constexpr, block_k: tl.constexpr,
):  # fmt: skip
    """total + x matrixᵀ over summands start … stop, at the given rows of x [·, depth] and of
    matrix [num_columns, depth]."""
    for first in range(start, stop, block_k):
        k = first + tl.arange(0, block_k)
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


@partial(jit, unspecialised=("num_rows", "h_stride", "weights_stride"))
def _parts(
    h, weights, down, value_weight, parts, num_rows, h_stride, weights_stride,
    num_heads: tl.constexpr, rank: tl.constexpr, depth: tl.constexpr, blocks_of_head: tl.constexpr,
    part_size: tl.constexpr, num_columns: tl.constexpr, block_b: tl.constexpr, block_n: tl.constexpr,
    block_k: tl.constexpr,
):  # fmt: skip
    """parts[s, b, :] = D h of every head, one after another, then the values, over the s-th part of the
    summands; 0 in a head's columns where no row of the block uses it."""
    column_block, part = tl.program_id(1), tl.program_id(2)
    rows = tl.program_id(0).to(tl.int64) * block_b + tl.arange(0, block_b)
    start = part * part_size
    stop = tl.minimum(start + part_size, depth)
    total = tl.zeros((block_b, block_n), tl.float32)
    head = column_block // blocks_of_head
    columns = (column_block % blocks_of_head) * block_n + tl.arange(0, block_n)
    there, at = columns < rank, head * rank + columns
    if head < num_heads:
        weight = tl.load(weights + rows * weights_stride + head, mask=rows < num_rows, other=0.0)
        if tl.max(tl.abs(weight), 0) > 0:
            total = _product(
                h, h_stride, rows, down + head * rank * depth, columns, num_rows, rank, total, start, stop,
                depth, block_k,
            )  # fmt: skip
    elif num_columns > num_heads * rank:
        columns = (column_block - num_heads * blocks_of_head) * block_n + tl.arange(0, block_n)
        total = _product(
            h, h_stride, rows, value_weight, columns, num_rows, num_heads, total, start, stop, depth, block_k
        )
        there, at = columns < num_heads, num_heads * rank + columns
    place = parts + (part * num_rows + rows[:, None]) * num_columns + at[None, :]
    tl.store(place, total, mask=(rows < num_rows)[:, None] & there[None, :])


@partial(jit, unspecialised=("num_rows", "weights_stride"))
def _finish(
    parts, weights, value_bias, inner, values, num_rows, weights_stride,
    num_heads: tl.constexpr, rank: tl.constexpr, silu_heads: tl.constexpr, num_parts: tl.constexpr,
    num_columns: tl.constexpr, block: tl.constexpr,
):  # fmt: skip
    """inner[b, h, :] = w_bh φ_h(D_h h_b), exactly 0 where w_bh is 0, and the values, from the parts summed in
    order. Bit h of silu_heads: φ_h is SiLU."""
    row, at = tl.program_id(0).to(tl.int64), tl.program_id(1) * block + tl.arange(0, block)
    total = tl.zeros((block,), tl.float32)
    for part in tl.static_range(num_parts):
        place = parts + (part * num_rows + row) * num_columns + at
        total += tl.load(place, mask=at < num_columns, other=0.0)
    head, is_inner = at // rank, at < num_heads * rank
    weight = tl.load(weights + row * weights_stride + head, mask=is_inner, other=0.0)
    is_silu = ((silu_heads >> head) & 1) == 1
    activated = tl.where(is_silu, total / (1.0 + tl.exp(-total)), total)
    scaled = tl.where(weight != 0, activated * weight, 0.0)
    tl.store(inner + row * num_heads * rank + at, scaled, mask=is_inner)
    if num_columns > num_heads * rank:
        of_value, is_value = at - num_heads * rank, (at >= num_heads * rank) & (at < num_columns)
        bias = tl.load(value_bias + of_value, mask=is_value, other=0.0)
        tl.store(values + row * num_heads + of_value, total + bias, mask=is_value)


@partial(jit, unspecialised=("num_rows", "weights_stride"))
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
                mine, num_heads * rank, rows, theirs, columns, num_rows, width, total, 0, rank, rank, block_k
            )
    there = (rows < num_rows)[:, None] & (columns < width)[None, :]
    tl.store(out + rows[:, None] * width + columns[None, :], total, mask=there)


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
    row_blocks, blocks_of_head = triton.cdiv(num_rows, BLOCK_B), triton.cdiv(rank, BLOCK_N)
    blocks = {"block_b": BLOCK_B, "block_n": BLOCK_N, "block_k": BLOCK_K}
    part_size = BLOCK_K * triton.cdiv(width, NUM_PARTS * BLOCK_K)
    num_parts = triton.cdiv(width, part_size)
    value_blocks = 0 if value_weight is None else triton.cdiv(num_heads, BLOCK_N)
    num_columns = num_heads * rank + (0 if value_weight is None else num_heads)
    parts = h.new_empty(num_parts, num_rows, num_columns, dtype=torch.float32)
    columns = inner = parts.new_empty(num_rows, num_heads * rank)
    values = None if value_weight is None else parts.new_empty(num_rows, num_heads)
    bias = value_bias
    if value_weight is not None and bias is None:
        bias = parts.new_zeros(num_heads)
    _parts[row_blocks, num_heads * blocks_of_head + value_blocks, num_parts](
        h, weights, down.contiguous(), None if value_weight is None else value_weight.contiguous(), parts,
        num_rows, h.stride(0), weights.stride(0), num_heads=num_heads, rank=rank, depth=width,
        blocks_of_head=blocks_of_head, part_size=part_size, num_columns=num_columns, **blocks,
    )  # fmt: skip
    silu_heads = sum(1 << head for head in range(num_heads) if activations[head] == "silu")
    _finish[num_rows, triton.cdiv(num_columns, BLOCK_FINISH)](
        parts, weights, bias, inner, values, num_rows, weights.stride(0), num_heads=num_heads, rank=rank,
        silu_heads=silu_heads, num_parts=num_parts, num_columns=num_columns, block=BLOCK_FINISH,
    )  # fmt: skip
    if up is not None:
        columns = parts.new_empty(num_rows, width)
        _up[row_blocks, triton.cdiv(width, BLOCK_N)](
            inner, weights, up.contiguous(), columns, num_rows, weights.stride(0),
            num_heads=num_heads, rank=rank, width=width, **blocks,
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
