"""Guided logits: measures the tilt and draws a keyed token from materialised logits."""

# mypy: allow-untyped-defs, allow-incomplete-defs

from __future__ import annotations

from dataclasses import dataclass
from typing import Unpack

import torch
from torch import Tensor

from trimtab.kernels.base_statistics import (
    BLOCK_V,
    BaseStatistics,
    base_statistics,
    exponent_origin,
    pivot_and_stride,
)
from trimtab.kernels.cpu import draw as cpu
from trimtab.kernels.dispatch import choose_backend, jit, tl, triton
from trimtab.kernels.philox import DRAW, MIN_TEMPERATURE, gumbel_tile, keyed_draw
from trimtab.kernels.tile_reduce import (
    NO_TOKEN,
    NUM_FIELDS,
    NUM_PLAIN_FIELDS,
    WEAK_LIFT,
    GuidedDraw,
    TilePartials,
    tile_reduce,
)
from trimtab.kernels.truncate import Cuts, truncation_threshold

__all__ = ["MIN_TEMPERATURE", "GuidedDraw", "guided_logits", "tilted_logits"]


@dataclass(frozen=True, slots=True)
class _Inputs:
    """The arguments of `guided_logits`."""

    logits: Tensor
    seeds: Tensor
    positions: Tensor
    choices: Tensor
    temperature: Tensor
    advantage: Tensor | None
    advantage_row: Tensor | None
    beta: Tensor | None
    want_entropy: bool
    any_greedy: bool
    any_sampled: bool
    cuts: Cuts

    @property
    def truncates(self) -> bool:
        return self.any_sampled and any(cut is not None for cut in self.cuts.values())

    def threshold(self, guided: Tensor, backend: str) -> Tensor:
        return truncation_threshold(guided, self.temperature, **self.cuts, backend=backend)


@dataclass(frozen=True, slots=True)
class _Tilt:
    """z + βĀ [B, V] and what is measured of it [B]. top, total: see `BaseStatistics`."""

    guided: Tensor
    top: Tensor
    total: Tensor
    kl: Tensor
    soft_value: Tensor
    flip: Tensor


def _shift(advantage: Tensor, advantage_row: Tensor, beta: Tensor, mean: Tensor) -> Tensor:
    """βĀ [R, V] of rows that all have an advantage. mean: see `BaseStatistics`."""
    shift = advantage.index_select(0, advantage_row)
    shift -= shift[:, :1].clone()  # before the mean, so that an offset common to A costs no precision
    shift -= mean[:, None]
    shift *= beta[:, None]
    return shift


def _add_shift(
    logits: Tensor, advantage: Tensor, advantage_row: Tensor, beta: Tensor, mean: Tensor
) -> Tensor:
    """z + βĀ [R, V], z in rows without a tilt. Unlike `_tilt` it never waits for the device."""
    shift = _shift(advantage, advantage_row.clamp(min=0), beta, mean)
    tilted = (advantage_row >= 0) & (beta != 0)
    return torch.where(tilted[:, None], logits + shift, logits)


def _tilt(inputs: _Inputs, base: BaseStatistics) -> _Tilt:
    z, advantage, advantage_row, beta = inputs.logits, inputs.advantage, inputs.advantage_row, inputs.beta
    zero = torch.zeros_like(base.top)
    plain = _Tilt(z, base.top, base.total, zero, zero, torch.zeros_like(zero, dtype=torch.bool))
    if advantage is None:
        return plain
    assert advantage_row is not None
    assert beta is not None
    rows = ((advantage_row >= 0) & (beta != 0)).nonzero()[:, 0]
    if not len(rows):
        return plain
    everyone = len(rows) == len(z)

    def pick(values: Tensor) -> Tensor:
        return values if everyone else values.index_select(0, rows)

    def put(values: Tensor, others: Tensor) -> Tensor:
        return values if everyone else others.index_copy(0, rows, values)

    base_logits, strength = pick(z), pick(beta)
    shift = _shift(advantage, pick(advantage_row), strength, pick(base.mean))
    guided = base_logits + shift
    probabilities, top = guided.softmax(1), guided.amax(1)
    total = probabilities.amax(1).reciprocal_()
    lift = probabilities.mul_(shift).sum(1)  # E_β[βĀ]
    log_mean = (top - pick(base.top)) + (total / pick(base.total)).log()  # Λ
    # A weak tilt's Λ drowns in the rounding of two normalisers; to second order it is half the lift.
    soft_value = torch.where(lift < WEAK_LIFT, lift / 2, log_mean) / strength
    favourite = guided.gather(1, base_logits.argmax(1, keepdim=True))[:, 0]
    return _Tilt(
        put(guided, z),
        put(top, plain.top),
        put(total, plain.total),
        put((lift - log_mean).clamp_(min=0), plain.kl),
        put(soft_value, plain.soft_value),
        put(favourite < top, plain.flip),
    )


def _draw(inputs: _Inputs, guided: Tensor) -> Tensor:
    if not inputs.any_sampled:
        return guided.argmax(1)
    return keyed_draw(
        guided,
        seeds=inputs.seeds,
        positions=inputs.positions,
        choices=inputs.choices,
        temperature=inputs.temperature,
        threshold=inputs.threshold(guided, "reference") if inputs.truncates else None,
        any_greedy=inputs.any_greedy,
    )


def _reference(inputs: _Inputs) -> GuidedDraw:
    base = base_statistics(
        inputs.logits,
        inputs.advantage,
        inputs.advantage_row,
        want_entropy=inputs.want_entropy,
        backend="reference",
    )
    tilt = _tilt(inputs, base)
    token = _draw(inputs, tilt.guided)
    base_log_total, log_total = base.total.log(), tilt.total.log()
    logprob = tilt.guided.gather(1, token[:, None])[:, 0] - tilt.top - log_total
    base_logprob = inputs.logits.gather(1, token[:, None])[:, 0] - base.top - base_log_total
    broken = ~log_total.isfinite()
    nan = torch.nan
    return GuidedDraw(
        token.masked_fill_(broken, NO_TOKEN),
        logprob.masked_fill_(broken, nan),
        base_logprob.masked_fill_(broken, nan),
        tilt.kl.masked_fill(broken, nan),
        tilt.soft_value.masked_fill(broken, nan),
        base.entropy,
        tilt.flip,
        base.top + base_log_total,
        tilt.top + log_total,
    )


# One program per row and tile of the vocabulary leaves the fields of `TilePartials`, whose pivot is the
# advantage of token 0. vocab_offset is the id of a shard's first token.


@jit
def _tiles(
    logits, advantage, pivot, advantage_row, beta, threshold, seeds, positions, choices, temperature,
    partial, best_tokens, logits_stride, advantage_stride, vocab_size, vocab_offset,
    tilts: tl.constexpr, truncates: tl.constexpr, samples: tl.constexpr, entropy: tl.constexpr,
    purpose: tl.constexpr, min_temperature: tl.constexpr, block: tl.constexpr,
):  # fmt: skip
    row, tile = tl.program_id(0).to(tl.int64), tl.program_id(1)
    lane = tl.arange(0, block)
    tokens = tile * block + lane
    inside = tokens < vocab_size
    z = tl.load(logits + row * logits_stride + tokens, mask=inside, other=float("-inf"))
    guided = z
    above = tl.zeros_like(z)
    strength = 0.0
    if tilts:
        source = tl.load(advantage_row + row)
        strength = tl.load(beta + row)
        there = (source >= 0) & (strength != 0)
        origin = tl.load(pivot + source, mask=there, other=0.0)
        values = advantage + source * advantage_stride + tokens
        above = tl.load(values, mask=inside & there, other=origin) - origin
        guided = z + above * strength

    score = guided
    if samples:
        heat = tl.load(temperature + row)
        seed, position, choice = tl.load(seeds + row), tl.load(positions + row), tl.load(choices + row)
        noise = gumbel_tile(seed, position, choice, vocab_offset + tile * block, purpose, block)
        score = tl.where(heat == 0, guided, guided * (1.0 / tl.maximum(heat, min_temperature)) + noise)
    if truncates:
        score = tl.where(guided >= tl.load(threshold + row), score, float("-inf"))
    score = tl.where(z > float("-inf"), score, float("-inf"))
    best = tl.argmax(score, 0)

    base_top = tl.max(z, 0)
    below = z - exponent_origin(base_top)
    mass = tl.exp(below)
    slot, size = row * tl.num_programs(1) + tile, tl.num_programs(0).to(tl.int64) * tl.num_programs(1)
    out = partial + slot
    tl.store(best_tokens + slot, (vocab_offset + tile * block + best).to(tl.int64))
    tl.store(out, base_top)
    tl.store(out + size, tl.sum(mass, 0))
    if entropy:
        tl.store(out + 2 * size, tl.sum(tl.where(mass > 0, mass * below, 0.0), 0))
    tl.store(out + 3 * size, tl.max(score, 0))
    tl.store(out + 4 * size, tl.sum(tl.where(lane == best, guided, 0.0), 0))
    if tilts:
        top = tl.max(guided, 0)
        guided_mass = tl.exp(guided - exponent_origin(top))
        tl.store(out + 5 * size, tl.sum(tl.where(lane == best, z, 0.0), 0))
        tl.store(out + 6 * size, tl.sum(mass * above, 0))
        tl.store(out + 7 * size, top)
        tl.store(out + 8 * size, tl.sum(guided_mass, 0))
        tl.store(out + 9 * size, tl.sum(guided_mass * (above * strength), 0))
        tl.store(out + 10 * size, tl.sum(tl.where(lane == tl.argmax(z, 0), guided, 0.0), 0))


def _materialise(inputs: _Inputs) -> Tensor:
    """z + β(A − p) [B, V] in the very roundings of `_tiles`, which compares its own with the threshold."""
    if inputs.advantage is None:
        return inputs.logits
    assert inputs.advantage_row is not None
    assert inputs.beta is not None
    mean = torch.zeros_like(inputs.beta)
    return _add_shift(inputs.logits, inputs.advantage, inputs.advantage_row, inputs.beta, mean)


def _launch(inputs: _Inputs) -> GuidedDraw:
    z, advantage, advantage_row, beta = inputs.logits, inputs.advantage, inputs.advantage_row, inputs.beta
    assert z.stride(1) == 1
    assert advantage is None or advantage.stride(1) == 1
    num_rows, vocab_size = z.shape
    num_tiles = triton.cdiv(vocab_size, BLOCK_V)
    if advantage is None:
        beta = None
    else:
        assert advantage_row is not None
        assert beta is not None
        beta = beta.where(advantage_row >= 0, 0)
    threshold = inputs.threshold(_materialise(inputs), "triton") if inputs.truncates else None
    pivot, advantage_stride = pivot_and_stride(advantage)
    partial = z.new_empty(NUM_PLAIN_FIELDS if beta is None else NUM_FIELDS, num_rows, num_tiles)
    best_tokens = inputs.seeds.new_empty(num_rows, num_tiles)
    _tiles[num_rows, num_tiles](
        z, advantage, pivot, advantage_row, beta, threshold, inputs.seeds, inputs.positions, inputs.choices,
        inputs.temperature, partial, best_tokens, z.stride(0), advantage_stride, vocab_size, 0,
        tilts=beta is not None, truncates=threshold is not None, samples=inputs.any_sampled,
        entropy=inputs.want_entropy, purpose=DRAW, min_temperature=MIN_TEMPERATURE, block=BLOCK_V,
        enable_fp_fusion=False,
    )  # fmt: skip
    partials = TilePartials(partial, best_tokens)
    return tile_reduce(partials, beta, want_entropy=inputs.want_entropy, backend="triton")


def _call(inputs: _Inputs) -> GuidedDraw:
    fields = cpu.draw(
        inputs.logits,
        inputs.seeds,
        inputs.positions,
        inputs.choices,
        inputs.temperature,
        inputs.advantage,
        inputs.advantage_row,
        inputs.beta,
        inputs.want_entropy,
        **inputs.cuts,
    )
    return GuidedDraw(*fields)


def guided_logits(
    logits: Tensor,
    *,
    seeds: Tensor,
    positions: Tensor,
    choices: Tensor,
    temperature: Tensor,
    advantage: Tensor | None = None,
    advantage_row: Tensor | None = None,
    beta: Tensor | None = None,
    want_entropy: bool = False,
    any_greedy: bool = True,
    any_sampled: bool = True,
    backend: str | None = None,
    **cuts: Unpack[Cuts],
) -> GuidedDraw:
    """Draw one token per row from the tilt of the base, and measure the tilt.

    The draw is the argmax over allowed tokens of `(z + βĀ)/temperature` plus Gumbel noise keyed by seed,
    position and choice (see philox.py); the greedy draw is the argmax of `z + βĀ`, lowest id on a tie. A row
    without an advantage or with β = 0 is bitwise what it is in a batch where no row has one.

    Args:
        logits: f32[B, V], z of the base; −inf marks a masked token.
        seeds, positions, choices: i64[B].
        temperature: f32[B], 0 is greedy.
        advantage: f32[G, V], finite; an offset per row changes nothing.
        advantage_row: i64[B], each row's place in `advantage`, −1 for none. beta: f32[B].
        want_entropy: also measure the base's entropy.
        any_greedy, any_sampled: False promises that no row has temperature 0, or a higher one.
        backend: see `choose_backend`.
        cuts: min_p, top_k, top_p [B], see `truncation_threshold`; left out where no row asks for it.
    """
    if advantage is not None and not len(advantage):
        advantage = None
    inputs = _Inputs(
        logits, seeds, positions, choices, temperature, advantage, advantage_row, beta, want_entropy,
        any_greedy, any_sampled, cuts,
    )  # fmt: skip
    return _BACKENDS[choose_backend(logits.device, backend, _BACKENDS)](inputs)


def tilted_logits(
    logits: Tensor,
    advantage: Tensor,
    advantage_row: Tensor,
    beta: Tensor,
    backend: str | None = None,
) -> Tensor:
    """`z + βĀ`, Ā centred under the base, f32[R, V]; −inf stays −inf, rows without a tilt stay as they are.

    logits: f32[R, V]. advantage: f32[G, V]. advantage_row: i64[R], −1 for none. beta: f32[R].
    backend: see `choose_backend`.
    """
    if not len(advantage):
        return logits
    backend = choose_backend(logits.device, backend, _BACKENDS)
    if backend == "cpu":
        return cpu.tilted_logits(logits, advantage, advantage_row, beta)
    mean = base_statistics(logits, advantage, advantage_row, backend=backend).mean
    return _add_shift(logits, advantage, advantage_row, beta, mean)


_BACKENDS = {"reference": _reference, "triton": _launch, "cpu": _call}
