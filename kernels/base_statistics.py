"""Base statistics: measure a row's normaliser, its entropy, and an advantage's mean under the base."""

# mypy: allow-untyped-defs, allow-incomplete-defs

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from trimtab.kernels.cpu import draw as cpu
from trimtab.kernels.dispatch import choose_backend, jit, tl, triton

BLOCK_V = 2048  # tokens of one program; the same for every batch, so that no row's sums depend on another's


@dataclass(frozen=True, slots=True)
class BaseStatistics:
    """Of each row of logits z, f32[B].

    top, total: the largest logit and Σ exp(z − top). Kept apart, two normalisers compare without the
        rounding of a common offset. In a row that holds a NaN or no finite logit total is NaN or 0.
    entropy: nats; None unless asked for.
    mean: E[A − A₀] under the base, A₀ the advantage of token 0; 0 in rows without an advantage.
    """

    top: Tensor
    total: Tensor
    entropy: Tensor | None
    mean: Tensor


def _reference(
    logits: Tensor, advantage: Tensor | None, advantage_row: Tensor | None, want_entropy: bool
) -> BaseStatistics:
    probabilities, top = logits.softmax(1), logits.amax(1)
    total = probabilities.amax(1).reciprocal_()
    entropy, mean = None, torch.zeros_like(top)
    if want_entropy:
        below = (logits - top[:, None]).clamp_(min=torch.finfo(torch.float32).min)  # 0 · −inf would be NaN
        entropy = total.log() - (probabilities * below).sum(1)
    if advantage is not None:
        assert advantage_row is not None
        rows = (advantage_row >= 0).nonzero()[:, 0]
        if len(rows) < len(logits):
            advantage_row, probabilities = advantage_row[rows], probabilities.index_select(0, rows)
        values = advantage.index_select(0, advantage_row)
        values -= values[:, :1].clone()
        mean[rows] = values.mul_(probabilities).sum(1)
    return BaseStatistics(top, total, entropy, mean)


@jit
def exponent_origin(x):
    """The largest logit, but 0 where every token is masked: −inf − −inf would be NaN."""
    return tl.where(x == float("-inf"), 0.0, x)


# One program per row and tile of the vocabulary leaves its largest logit, Σ exp, Σ exp·(z − largest) and
# Σ exp·(A − A₀), one per row merges them in the order of the tiles.


@jit
def _tiles(
    logits, advantage, pivot, advantage_row, partial,
    logits_stride, advantage_stride, vocab_size,
    tilts: tl.constexpr, block: tl.constexpr,
):  # fmt: skip
    row, tile = tl.program_id(0).to(tl.int64), tl.program_id(1)
    tokens = tile * block + tl.arange(0, block)
    inside = tokens < vocab_size
    z = tl.load(logits + row * logits_stride + tokens, mask=inside, other=float("-inf"))
    top = tl.max(z, 0)
    below = z - exponent_origin(top)
    weight = tl.exp(below)
    out = partial + (row * tl.num_programs(1) + tile) * 4
    tl.store(out, top)
    tl.store(out + 1, tl.sum(weight, 0))
    tl.store(out + 2, tl.sum(tl.where(weight > 0, weight * below, 0.0), 0))
    if tilts:
        source = tl.load(advantage_row + row)
        origin = tl.load(pivot + source, mask=source >= 0, other=0.0)
        there = inside & (source >= 0)
        values = tl.load(advantage + source * advantage_stride + tokens, mask=there, other=0.0) - origin
        tl.store(out + 3, tl.sum(weight * values, 0))


@jit
def _merge(partial, out, num_tiles, num_rows, tilts: tl.constexpr, tiles: tl.constexpr):
    row, tile = tl.program_id(0).to(tl.int64), tl.arange(0, tiles)
    valid = tile < num_tiles
    at = partial + (row * num_tiles + tile) * 4
    tops = tl.load(at, mask=valid, other=float("-inf"))
    totals = tl.load(at + 1, mask=valid, other=0.0)
    spreads = tl.load(at + 2, mask=valid, other=0.0)
    top = tl.max(tops, 0)
    below = tops - exponent_origin(top)
    scale = tl.exp(below)
    total = tl.sum(scale * totals, 0)
    spread = tl.sum(tl.where(scale > 0, scale * (spreads + totals * below), 0.0), 0)
    out += row
    tl.store(out, top)
    tl.store(out + num_rows, total)
    tl.store(out + 2 * num_rows, tl.log(total) - spread / total)
    mean = 0.0
    if tilts:
        mean = tl.sum(scale * tl.load(at + 3, mask=valid, other=0.0), 0) / total
    tl.store(out + 3 * num_rows, mean)


def pivot_and_stride(advantage: Tensor | None) -> tuple[Tensor | None, int]:
    """What a kernel needs beside `advantage`: the advantages of token 0 and the distance between rows."""
    return (None, 0) if advantage is None else (advantage[:, 0].contiguous(), advantage.stride(0))


def _launch(
    logits: Tensor, advantage: Tensor | None, advantage_row: Tensor | None, want_entropy: bool
) -> BaseStatistics:
    assert logits.stride(1) == 1
    num_rows, vocab_size = logits.shape
    num_tiles = triton.cdiv(vocab_size, BLOCK_V)
    tilts = advantage is not None
    pivot, advantage_stride = pivot_and_stride(advantage)
    partial, out = logits.new_empty(num_rows, num_tiles, 4), logits.new_empty(4, num_rows)
    _tiles[num_rows, num_tiles](
        logits, advantage, pivot, advantage_row, partial, logits.stride(0), advantage_stride, vocab_size,
        tilts=tilts, block=BLOCK_V,
    )  # fmt: skip
    _merge[num_rows,](partial, out, num_tiles, num_rows, tilts=tilts, tiles=triton.next_power_of_2(num_tiles))
    top, total, entropy, mean = out.unbind()
    return BaseStatistics(top, total, entropy if want_entropy else None, mean)


def _call(
    logits: Tensor, advantage: Tensor | None, advantage_row: Tensor | None, want_entropy: bool
) -> BaseStatistics:
    return BaseStatistics(*cpu.measure_base(logits, advantage, advantage_row, want_entropy))


def base_statistics(
    logits: Tensor,
    advantage: Tensor | None = None,
    advantage_row: Tensor | None = None,
    *,
    want_entropy: bool = False,
    backend: str | None = None,
) -> BaseStatistics:
    """Measure the base of each row.

    logits: f32[B, V], −inf marks a masked token. advantage: f32[G, V], finite. advantage_row: i64[B], each
    row's place in `advantage`, −1 for none. backend: see `choose_backend`.
    """
    run = _BACKENDS[choose_backend(logits.device, backend, _BACKENDS)]
    return run(logits, advantage, advantage_row, want_entropy)


_BACKENDS = {"reference": _reference, "triton": _launch, "cpu": _call}
