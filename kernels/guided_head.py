"""Guided head: measures the tilt and draws a keyed token straight from hidden states, with no logits in
memory.

One pass over `weight` makes z and A of a tile of the vocabulary in registers, for all rows at once; the tile
leaves a few numbers per row, and `tile_reduce` merges them. It is bound by the reading of `weight`, which a
tilt shares.
"""

# mypy: allow-untyped-defs, allow-incomplete-defs

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from trimtab.kernels.base_statistics import exponent_origin
from trimtab.kernels.dispatch import choose_backend, jit, tl, triton
from trimtab.kernels.guided_logits import MIN_TEMPERATURE, guided_logits
from trimtab.kernels.philox import DRAW, gumbel_of
from trimtab.kernels.tile_reduce import (
    NUM_FIELDS,
    NUM_PLAIN_FIELDS,
    GuidedDraw,
    TilePartials,
    tile_reduce,
)

# Tokens of one program, the bytes of a row that it reads at once, its warps, and the rows that are measured
# together: the same for every batch, so that a row's numbers do not depend on how many share it. Only a
# program's rows follow the batch: they are columns of the matrix instructions, whose sums do not mix. That an
# instruction of 64 columns rounds as one of 16 does is not in its specification: it is checked on the GPU.
BLOCK_V, BLOCK_BYTES, NUM_WARPS, GROUP = 128, 128, 4, 16
ROW_TILES = (16, 32, 64)  # rows of one program, each another program to compile
BLOCK_PIVOT = 1024


@dataclass(frozen=True, slots=True)
class HeadInputs:
    """The arguments of `guided_head`; inner and up are its `lowrank`, all in the type of weight."""

    h: Tensor
    weight: Tensor
    seeds: Tensor
    positions: Tensor
    choices: Tensor
    temperature: Tensor
    column: Tensor | None
    inner: Tensor | None
    up: Tensor | None
    beta: Tensor | None
    want_entropy: bool
    any_greedy: bool
    any_sampled: bool

    @property
    def tilts(self) -> bool:
        return self.column is not None or self.inner is not None


def _product(rows: Tensor, matrix: Tensor) -> Tensor:
    return rows.float() @ matrix.float().T


def _reference(inputs: HeadInputs) -> GuidedDraw:
    z, advantage, advantage_row = _product(inputs.h, inputs.weight), None, None
    if inputs.column is not None:
        advantage = _product(inputs.column, inputs.weight)
    if inputs.inner is not None:
        assert inputs.up is not None
        low_rank = _product(inputs.inner, inputs.up)
        advantage = low_rank if advantage is None else advantage + low_rank
    if advantage is not None:
        advantage_row = torch.arange(len(z), device=z.device)
    return guided_logits(
        z,
        seeds=inputs.seeds,
        positions=inputs.positions,
        choices=inputs.choices,
        temperature=inputs.temperature,
        advantage=advantage,
        advantage_row=advantage_row,
        beta=inputs.beta,
        want_entropy=inputs.want_entropy,
        any_greedy=inputs.any_greedy,
        any_sampled=inputs.any_sampled,
        backend="reference",
    )


# A Philox block serves four neighbouring tokens, and the matrix instructions leave a thread with rows of a
# tile that are 8 and 64 apart. So row 64a + 16w + 8b + l holds token 4(8w + l) + 2a + b: a thread then has
# four neighbours, which `_neighbours` tells apart without moving a number.


@jit
def _token_order(block_v: tl.constexpr):
    tl.static_assert(block_v == 128)
    row = tl.arange(0, block_v)
    return (row // 16 % 4 * 8 + row % 8) * 4 + row // 64 * 2 + row // 8 % 2


@jit
def _columns(x, index: tl.constexpr, block_v: tl.constexpr, block_b: tl.constexpr):
    """Columns 16·index … 16·index + 15 of x [block_v, block_b]."""
    if block_b == 64:
        low, high = tl.split(tl.permute(tl.reshape(x, (block_v, 2, 32)), (0, 2, 1)))
        x = low if index < 2 else high
    if block_b >= 32:
        low, high = tl.split(tl.permute(tl.reshape(x, (block_v, 2, 16)), (0, 2, 1)))
        x = low if index % 2 == 0 else high
    return x


@jit
def _neighbours(x, block_v: tl.constexpr, group: tl.constexpr):
    """Tokens 4q, 4q + 1, 4q + 2 and 4q + 3 of a tile x [block_v, group], each [block_v / 4, group]."""
    even, odd = tl.split(tl.permute(tl.reshape(x, (2, 4, 2, 8, group)), (1, 3, 4, 0, 2)))
    x0, x2 = tl.split(even)
    x1, x3 = tl.split(odd)
    shape: tl.constexpr = (block_v // 4, group)
    return tl.reshape(x0, shape), tl.reshape(x1, shape), tl.reshape(x2, shape), tl.reshape(x3, shape)


@jit
def _block(x, at, inside, start, depth: tl.constexpr, block_k: tl.constexpr):
    k = start + tl.arange(0, block_k)
    there = inside[:, None]
    if depth % block_k != 0:
        there = there & (k < depth)[None, :]
    return tl.load(x + at[:, None] + k[None, :], mask=there, other=0.0)


@partial(jit, unspecialised=("num_rows",))
def _tiles(
    h, column, weight, inner, up, pivot, beta, seeds, positions, choices, temperature, partial, tokens,
    h_stride, column_stride, weight_stride, inner_stride, up_stride, num_rows, vocab_size, vocab_offset,
    depth: tl.constexpr, rank: tl.constexpr, tied: tl.constexpr, samples: tl.constexpr,
    entropy: tl.constexpr, purpose: tl.constexpr, min_temperature: tl.constexpr,
    block_v: tl.constexpr, block_b: tl.constexpr, block_k: tl.constexpr, group: tl.constexpr,
):  # fmt: skip
    tile, first_row = tl.program_id(1), tl.program_id(0).to(tl.int64) * block_b
    rows = first_row + tl.arange(0, block_b)
    row_inside = rows < num_rows
    token = tile * block_v + _token_order(block_v)
    token_inside, token_at = token < vocab_size, token.to(tl.int64)

    z = tl.zeros((block_v, block_b), tl.float32)
    advantage = z
    for start in range(0, depth, block_k):
        left = _block(weight, token_at * weight_stride, token_inside, start, depth, block_k)
        right = _block(h, rows * h_stride, row_inside, start, depth, block_k)
        z = tl.dot(left, tl.trans(right), z, input_precision="ieee")
        if tied:
            right = _block(column, rows * column_stride, row_inside, start, depth, block_k)
            advantage = tl.dot(left, tl.trans(right), advantage, input_precision="ieee")
    if tied or rank > 0:
        advantage -= tl.load(pivot + rows, mask=row_inside, other=0.0)[None, :]
    if rank > 0:  # summed from −p on: an offset common to the columns of U is gone with the first products
        for start in range(0, rank, block_k):
            left = _block(up, token_at * up_stride, token_inside, start, rank, block_k)
            right = _block(inner, rows * inner_stride, row_inside, start, rank, block_k)
            advantage = tl.dot(left, tl.trans(right), advantage, input_precision="ieee")
    for i in tl.static_range(block_b // group):
        if first_row + i * group < num_rows:
            _measure(
                _neighbours(_columns(z, i, block_v, block_b), block_v, group),
                _neighbours(_columns(advantage, i, block_v, block_b), block_v, group),
                first_row + i * group + tl.arange(0, group), num_rows, tile, beta, seeds, positions, choices,
                temperature, partial, tokens, vocab_size, vocab_offset, tied or rank > 0, samples, entropy,
                purpose, min_temperature, block_v, group,
            )  # fmt: skip


@jit
def _measure(
    z_of, advantage_of, rows, num_rows, tile, beta, seeds, positions, choices, temperature, partial,
    tokens, vocab_size, vocab_offset,
    tilts: tl.constexpr, samples: tl.constexpr, entropy: tl.constexpr, purpose: tl.constexpr,
    min_temperature: tl.constexpr, block_v: tl.constexpr, group: tl.constexpr,
):  # fmt: skip
    """The fields of `TilePartials` of one tile, from four neighbours' z and A − p [block_v / 4, group]."""
    inside, num_tiles = rows < num_rows, tl.num_programs(1).to(tl.int64)
    quad = tile * (block_v // 4) + tl.arange(0, block_v // 4)
    slot, size = rows * num_tiles + tile, num_tiles * num_rows
    strength = tl.zeros((group,), tl.float32)
    heat, words = strength, (quad, quad, quad, quad)
    if tilts:
        strength = tl.load(beta + rows, mask=inside, other=0.0)
    if samples:
        heat = tl.load(temperature + rows, mask=inside, other=0.0)
        words = tl.philox(
            tl.load(seeds + rows, mask=inside, other=0)[None, :],
            tl.broadcast_to((vocab_offset // 4 + quad)[:, None], (block_v // 4, group)),
            tl.load(positions + rows, mask=inside, other=0).to(tl.int32)[None, :],
            tl.load(choices + rows, mask=inside, other=0).to(tl.int32)[None, :],
            purpose,
        )
    base_top, guided_top = _largest(
        z_of, advantage_of, words, quad, strength, heat, partial + slot, tokens + slot, size, inside,
        vocab_size, vocab_offset, tilts, samples, min_temperature,
    )  # fmt: skip
    _sums(
        z_of, advantage_of, quad, strength, exponent_origin(base_top), exponent_origin(guided_top),
        partial + slot, size, inside, vocab_size, tilts, entropy,
    )  # fmt: skip


@jit
def _token_and_base(z, quad, vocab_size, j: tl.constexpr):
    token = tl.broadcast_to((quad * 4 + j)[:, None], z.shape)
    return token, tl.where(token < vocab_size, z, float("-inf"))


@jit
def _shift(advantage, strength):
    return tl.where((strength != 0)[None, :], advantage * strength[None, :], 0.0)


@jit
def _lowest(token, is_largest):
    """The lowest token of the largest in each column, and where it is."""
    candidates = tl.where(is_largest, token, 2147483647)
    lowest = tl.min(candidates, 0)
    return lowest, candidates == lowest[None, :]


@jit
def _at(found, values):
    return tl.max(tl.where(found, values, float("-inf")), 0)


@jit
def _largest(
    z_of, advantage_of, words, quad, strength, heat, out, tokens, size, inside, vocab_size,
    vocab_offset, tilts: tl.constexpr, samples: tl.constexpr, min_temperature: tl.constexpr,
):  # fmt: skip
    """Fields 0, 3, 4, 5, 7 and 10: the largest z, ℓ and score, first among neighbours, then in the tile."""
    top = tl.full(z_of[0].shape, float("-inf"), tl.float32)
    guided_top, best, best_guided, best_base, favoured = top, top, top, top, top
    top_token = tl.zeros(top.shape, tl.int32)
    best_token = top_token
    inverse = 1.0 / tl.maximum(heat, min_temperature)
    for j in tl.static_range(4):
        token, base = _token_and_base(z_of[j], quad, vocab_size, j)
        guided = base
        if tilts:
            guided = base + _shift(advantage_of[j], strength)
        score = guided
        if samples:
            noisy = guided * inverse[None, :] + gumbel_of(words[j])
            score = tl.where((heat == 0)[None, :], guided, noisy)
        better = score > best
        best, best_token = tl.where(better, score, best), tl.where(better, token, best_token)
        best_guided, best_base = tl.where(better, guided, best_guided), tl.where(better, base, best_base)
        higher = base > top
        top, top_token = tl.where(higher, base, top), tl.where(higher, token, top_token)
        favoured, guided_top = tl.where(higher, guided, favoured), tl.maximum(guided_top, guided)

    base_top, score_top = tl.max(top, 0), tl.max(best, 0)
    drawn, found = _lowest(best_token, best == score_top[None, :])
    tl.store(tokens, (vocab_offset + drawn).to(tl.int64), mask=inside)
    tl.store(out, base_top, mask=inside)
    tl.store(out + 3 * size, score_top, mask=inside)
    tl.store(out + 4 * size, _at(found, best_guided), mask=inside)
    if tilts:
        tl.store(out + 5 * size, _at(found, best_base), mask=inside)
        guided_top_of_tile = tl.max(guided_top, 0)
        tl.store(out + 7 * size, guided_top_of_tile, mask=inside)
        _, found = _lowest(top_token, top == base_top[None, :])
        tl.store(out + 10 * size, _at(found, favoured), mask=inside)
    else:
        guided_top_of_tile = base_top
    return base_top, guided_top_of_tile


@jit
def _sums(
    z_of, advantage_of, quad, strength, base_origin, guided_origin, out, size, inside, vocab_size,
    tilts: tl.constexpr, entropy: tl.constexpr,
):  # fmt: skip
    """Fields 1, 2, 6, 8 and 9."""
    total = tl.zeros(z_of[0].shape, tl.float32)
    spread, mean, guided_total, lift = total, total, total, total
    for j in tl.static_range(4):
        _, base = _token_and_base(z_of[j], quad, vocab_size, j)
        below = base - base_origin[None, :]
        mass = tl.exp(below)
        total += mass
        if entropy:
            spread += tl.where(mass > 0, mass * below, 0.0)
        if tilts:
            mean += tl.where((strength != 0)[None, :], mass * advantage_of[j], 0.0)
            shift = _shift(advantage_of[j], strength)
            mass = tl.exp(base + shift - guided_origin[None, :])
            guided_total += mass
            lift += mass * shift
    tl.store(out + size, tl.sum(total, 0), mask=inside)
    if entropy:
        tl.store(out + 2 * size, tl.sum(spread, 0), mask=inside)
    if tilts:
        tl.store(out + 6 * size, tl.sum(mean, 0), mask=inside)
        tl.store(out + 8 * size, tl.sum(guided_total, 0), mask=inside)
        tl.store(out + 9 * size, tl.sum(lift, 0), mask=inside)


@jit
def _first_advantage(
    column, weight, inner, up, out, column_stride, inner_stride,
    depth: tl.constexpr, rank: tl.constexpr, tied: tl.constexpr, block: tl.constexpr,
):  # fmt: skip
    """A of the first token, one program per row."""
    row = tl.program_id(0).to(tl.int64)
    total = tl.zeros((block,), tl.float32)
    if tied:
        for start in range(0, depth, block):
            k = start + tl.arange(0, block)
            left = tl.load(weight + k, mask=k < depth, other=0.0).to(tl.float32)
            right = tl.load(column + row * column_stride + k, mask=k < depth, other=0.0).to(tl.float32)
            total += left * right
    if rank > 0:  # else there is no `up` to load from, not even in a loop that never runs
        for start in range(0, rank, block):
            k = start + tl.arange(0, block)
            left = tl.load(up + k, mask=k < rank, other=0.0).to(tl.float32)
            right = tl.load(inner + row * inner_stride + k, mask=k < rank, other=0.0).to(tl.float32)
            total += left * right
    tl.store(out + row, tl.sum(total, 0))


def _stride(x: Tensor | None) -> int:
    assert x is None or x.stride(1) == 1
    return 0 if x is None else x.stride(0)


def advantage_pivot(inputs: HeadInputs) -> Tensor | None:
    """A of the first token f32[B], from which `head_partials` measures A; None without an advantage."""
    if not inputs.tilts:
        return None
    pivot = inputs.temperature.new_empty(len(inputs.h))
    _first_advantage[len(inputs.h),](
        inputs.column, inputs.weight, inputs.inner, inputs.up, pivot,
        _stride(inputs.column), _stride(inputs.inner), depth=inputs.h.shape[1],
        rank=0 if inputs.inner is None else inputs.inner.shape[1], tied=inputs.column is not None,
        block=BLOCK_PIVOT, enable_fp_fusion=False,
    )  # fmt: skip
    return pivot


def _block_b(inputs: HeadInputs) -> int:
    """Rows of one program: all up to 64, so that `weight` is read once, but no more than registers hold.

    They hold 16 in fp32, which has no matrix instruction, and 32 before Hopper, where 64 would also change
    which warp sums which tokens, and so the last bits.
    """
    if inputs.h.dtype == torch.float32:
        return 16
    early = inputs.h.is_cuda and torch.cuda.get_device_capability(inputs.h.device) < (9, 0)
    return next(size for size in ROW_TILES if size >= min(len(inputs.h), 32 if early else 64))


def _num_stages(block_b: int, dtype: torch.dtype) -> int:
    """Blocks in flight, such that two programs fit into the 227 KiB of an SM: one reads, one measures."""
    if dtype == torch.float32:
        return 3
    return {16: 5, 32: 4}.get(block_b, 3)


def head_partials(inputs: HeadInputs, pivot: Tensor | None, vocab_offset: int = 0) -> TilePartials:
    """What the tiles of a shard of the vocabulary measure, in Triton.

    inputs: with the shard's rows of weight and up. pivot: `advantage_pivot` of the first shard.
    vocab_offset: id of the shard's first token, a multiple of 4.
    """
    assert vocab_offset % 4 == 0
    h, weight, inner = inputs.h, inputs.weight, inputs.inner
    num_rows, (vocab_size, depth) = len(h), weight.shape
    num_tiles, block_b = triton.cdiv(vocab_size, BLOCK_V), _block_b(inputs)
    num_fields = NUM_FIELDS if inputs.tilts else NUM_PLAIN_FIELDS
    values = inputs.temperature.new_empty(num_fields, num_rows, num_tiles)
    tokens = inputs.seeds.new_empty(num_rows, num_tiles)
    _tiles[triton.cdiv(num_rows, block_b), num_tiles](
        h, inputs.column, weight, inner, inputs.up, pivot, inputs.beta, inputs.seeds, inputs.positions,
        inputs.choices, inputs.temperature, values, tokens, _stride(h), _stride(inputs.column),
        _stride(weight), _stride(inner), _stride(inputs.up), num_rows, vocab_size, vocab_offset,
        depth=depth, rank=0 if inner is None else inner.shape[1], tied=inputs.column is not None,
        samples=inputs.any_sampled, entropy=inputs.want_entropy, purpose=DRAW,
        min_temperature=MIN_TEMPERATURE, block_v=BLOCK_V, block_b=block_b,
        block_k=BLOCK_BYTES // h.element_size(), group=GROUP, num_warps=NUM_WARPS,
        num_stages=_num_stages(block_b, h.dtype), enable_fp_fusion=False,
    )  # fmt: skip
    return TilePartials(values, tokens)


def _launch(inputs: HeadInputs) -> GuidedDraw:
    partials = head_partials(inputs, advantage_pivot(inputs))
    beta = inputs.beta if inputs.tilts else None
    return tile_reduce(partials, beta, want_entropy=inputs.want_entropy, backend="triton")


def guided_head(
    h: Tensor,
    weight: Tensor,
    *,
    seeds: Tensor,
    positions: Tensor,
    choices: Tensor,
    temperature: Tensor,
    column: Tensor | None = None,
    lowrank: tuple[Tensor, Tensor] | None = None,
    beta: Tensor | None = None,
    want_entropy: bool = False,
    any_greedy: bool = True,
    any_sampled: bool = True,
    backend: str | None = None,
) -> GuidedDraw:
    """`guided_logits` of `z = W h` and `A = W g + U a`, without truncation.

    A row whose g and a are zero, or whose β is 0, is bitwise what it is in a batch where no row has an
    advantage. In Triton a row is bitwise the same in every batch, whatever its size and order.

    Args:
        h: [B, d], what the output embedding reads. weight: [V, d], W; fp32, bf16 or fp16.
        seeds, positions, choices: i64[B]. temperature: f32[B], 0 is greedy.
        column: [B, d], g of tied heads; lowrank: a [B, R] and U [V, R]. Either, both or none; zero where a
            row has none. h, W and U have one type, to which g and a are rounded.
        beta: f32[B], needed with an advantage.
        want_entropy: also measure the base's entropy.
        any_greedy, any_sampled: False promises that no row has temperature 0, or a higher one.
        backend: see `choose_backend`.
    """
    inner, up = (None, None) if lowrank is None else lowrank
    assert h.dtype == weight.dtype
    assert up is None or up.dtype == weight.dtype
    column = None if column is None else column.to(weight.dtype)
    inner = None if inner is None else inner.to(weight.dtype)
    inputs = HeadInputs(
        h, weight, seeds, positions, choices, temperature, column, inner, up, beta, want_entropy, any_greedy,
        any_sampled,
    )  # fmt: skip
    assert beta is not None or not inputs.tilts
    return _BACKENDS[choose_backend(h.device, backend)](inputs)


_BACKENDS = {"reference": _reference, "triton": _launch}
