"""The tilt's statistics and the keyed draw, from materialised logits."""

# mypy: allow-untyped-defs, allow-incomplete-defs

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from trimtab.kernels.base_statistics import (
    BLOCK_V,
    BaseStatistics,
    base_statistics,
    exponent_origin,
    pivot_and_stride,
)
from trimtab.kernels.dispatch import choose_backend, jit, tl, triton
from trimtab.kernels.keyed_draw import MIN_TEMPERATURE, keyed_draw
from trimtab.kernels.philox import DRAW, gumbel_tile
from trimtab.kernels.tile_reduce import NO_TOKEN, WEAK_LIFT, GuidedDraw
from trimtab.kernels.truncate import truncation_threshold

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
    min_p: Tensor | None
    top_k: Tensor | None
    top_p: Tensor | None
    want_entropy: bool
    any_greedy: bool
    any_sampled: bool

    @property
    def truncates(self) -> bool:
        return self.any_sampled and any(cut is not None for cut in (self.min_p, self.top_k, self.top_p))

    def threshold(self, guided: Tensor, backend: str) -> Tensor:
        return truncation_threshold(guided, self.temperature, self.min_p, self.top_k, self.top_p, backend)


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


# One program per row and tile of the vocabulary leaves partial results, one per row merges them in the order
# of the tiles. vocab_offset is the id of a shard's first token: partials of several shards merge alike. Of
# a tile they are: the largest z + βĀ, Σ exp and Σ exp·βĀ below it, the best score, z + βĀ and z of its token,
# the largest z, and z + βĀ of that token.


@jit
def _tiles(
    logits, advantage, pivot, advantage_row, beta, mean, threshold, seeds, positions, choices, temperature,
    partial, best_tokens, logits_stride, advantage_stride, vocab_size, vocab_offset,
    tilts: tl.constexpr, truncates: tl.constexpr, samples: tl.constexpr, purpose: tl.constexpr,
    min_temperature: tl.constexpr, block: tl.constexpr,
):  # fmt: skip
    row, tile = tl.program_id(0).to(tl.int64), tl.program_id(1)
    lane = tl.arange(0, block)
    tokens = tile * block + lane
    inside = tokens < vocab_size
    z = tl.load(logits + row * logits_stride + tokens, mask=inside, other=float("-inf"))
    guided = z
    shift = tl.zeros_like(z)
    if tilts:
        source = tl.load(advantage_row + row)
        strength = tl.where(source >= 0, tl.load(beta + row), 0.0)
        origin = tl.load(pivot + source, mask=source >= 0, other=0.0)
        values = tl.load(
            advantage + source * advantage_stride + tokens, mask=inside & (source >= 0), other=0.0
        )
        shift = (values - origin - tl.load(mean + row)) * strength
        shift = tl.where(strength != 0, shift, 0.0)
        guided = tl.where(strength != 0, z + shift, z)

    score = guided
    if samples:
        heat = tl.load(temperature + row)
        seed, position, choice = tl.load(seeds + row), tl.load(positions + row), tl.load(choices + row)
        noise = gumbel_tile(seed, position, choice, vocab_offset + tile * block, purpose, block)
        score = tl.where(heat == 0, guided, guided * (1.0 / tl.maximum(heat, min_temperature)) + noise)
    if truncates:
        score = tl.where(guided >= tl.load(threshold + row), score, float("-inf"))
    score = tl.where(z > float("-inf"), score, float("-inf"))
    best, favourite = tl.argmax(score, 0), tl.argmax(z, 0)

    top = tl.max(guided, 0)
    weight = tl.exp(guided - exponent_origin(top))
    slot = row * tl.num_programs(1) + tile
    out = partial + slot * 8
    tl.store(out, top)
    tl.store(out + 1, tl.sum(weight, 0))
    tl.store(out + 2, tl.sum(weight * shift, 0))
    tl.store(out + 3, tl.max(score, 0))
    tl.store(out + 4, tl.sum(tl.where(lane == best, guided, 0.0), 0))
    tl.store(out + 5, tl.sum(tl.where(lane == best, z, 0.0), 0))
    tl.store(out + 6, tl.max(z, 0))
    tl.store(out + 7, tl.sum(tl.where(lane == favourite, guided, 0.0), 0))
    tl.store(best_tokens + slot, (vocab_offset + tile * block + best).to(tl.int64))


@jit
def _merge(
    partial, best_tokens, advantage_row, beta, base_tops, base_totals, token, out, num_tiles, num_rows,
    tilts: tl.constexpr, weak_lift: tl.constexpr, no_token: tl.constexpr, tiles: tl.constexpr,
):  # fmt: skip
    row, tile = tl.program_id(0).to(tl.int64), tl.arange(0, tiles)
    valid = tile < num_tiles
    at = partial + (row * num_tiles + tile) * 8
    tops = tl.load(at, mask=valid, other=float("-inf"))
    top = tl.max(tops, 0)
    scale = tl.exp(tops - exponent_origin(top))
    total = tl.sum(scale * tl.load(at + 1, mask=valid, other=0.0), 0)
    log_total = tl.log(total)

    winner = tile == tl.argmax(tl.load(at + 3, mask=valid, other=float("-inf")), 0)
    won = valid & winner
    drawn = tl.sum(tl.load(best_tokens + row * num_tiles + tile, mask=won, other=0), 0)
    logprob = tl.sum(tl.load(at + 4, mask=won, other=0.0), 0) - top - log_total
    base_logprob, base_lse = logprob, top + log_total
    kl = 0.0
    soft_value = 0.0
    flip = 0.0
    if tilts:
        strength = tl.where(tl.load(advantage_row + row) >= 0, tl.load(beta + row), 0.0)
        if strength != 0:
            base_top, base_total = tl.load(base_tops + row), tl.load(base_totals + row)
            base_logprob = tl.sum(tl.load(at + 5, mask=won, other=0.0), 0) - base_top - tl.log(base_total)
            base_lse = base_top + tl.log(base_total)
            lift = tl.sum(scale * tl.load(at + 2, mask=valid, other=0.0), 0) / total
            log_mean = (top - base_top) + tl.log(total / base_total)
            kl = tl.maximum(lift - log_mean, 0.0)
            soft_value = tl.where(lift < weak_lift, lift / 2, log_mean) / strength
            favourite = tile == tl.argmax(tl.load(at + 6, mask=valid, other=float("-inf")), 0)
            kept = tl.sum(tl.load(at + 7, mask=valid & favourite, other=0.0), 0)
            flip = tl.where(kept < top, 1.0, 0.0)

    whole = tl.abs(log_total) < float("inf")
    nan = float("nan")
    tl.store(token + row, tl.where(whole, drawn, no_token))
    out += row
    tl.store(out, tl.where(whole, logprob, nan))
    tl.store(out + num_rows, tl.where(whole, base_logprob, nan))
    tl.store(out + 2 * num_rows, tl.where(whole, kl, nan))
    tl.store(out + 3 * num_rows, tl.where(whole, soft_value, nan))
    tl.store(out + 4 * num_rows, flip)
    tl.store(out + 5 * num_rows, tl.where(whole, base_lse, nan))
    tl.store(out + 6 * num_rows, tl.where(whole, top + log_total, nan))


def _materialise(inputs: _Inputs, base: BaseStatistics | None) -> Tensor:
    """z + βĀ [B, V] in the very roundings of `_tiles`, which compares its own with the threshold."""
    if inputs.advantage is None or base is None:
        return inputs.logits
    assert inputs.advantage_row is not None
    assert inputs.beta is not None
    return _add_shift(inputs.logits, inputs.advantage, inputs.advantage_row, inputs.beta, base.mean)


def _launch(inputs: _Inputs) -> GuidedDraw:
    z, advantage, advantage_row, beta = inputs.logits, inputs.advantage, inputs.advantage_row, inputs.beta
    assert z.stride(1) == 1
    assert advantage is None or advantage.stride(1) == 1
    num_rows, vocab_size = z.shape
    num_tiles = triton.cdiv(vocab_size, BLOCK_V)
    tilts = advantage is not None
    base = None
    if tilts or inputs.want_entropy:
        base = base_statistics(
            z, advantage, advantage_row, want_entropy=inputs.want_entropy, backend="triton"
        )
    threshold = inputs.threshold(_materialise(inputs, base), "triton") if inputs.truncates else None
    pivot, advantage_stride = pivot_and_stride(advantage)
    partial, best_tokens = z.new_empty(num_rows, num_tiles, 8), inputs.seeds.new_empty(num_rows, num_tiles)
    token, out = torch.empty_like(inputs.seeds), z.new_empty(7, num_rows)
    _tiles[num_rows, num_tiles](
        z, advantage, pivot, advantage_row, beta, None if base is None else base.mean, threshold,
        inputs.seeds, inputs.positions, inputs.choices, inputs.temperature, partial, best_tokens,
        z.stride(0), advantage_stride, vocab_size, 0,
        tilts=tilts, truncates=threshold is not None, samples=inputs.any_sampled, purpose=DRAW,
        min_temperature=MIN_TEMPERATURE, block=BLOCK_V, enable_fp_fusion=False,
    )  # fmt: skip
    _merge[num_rows,](
        partial, best_tokens, advantage_row, beta, None if base is None else base.top,
        None if base is None else base.total, token, out, num_tiles, num_rows,
        tilts=tilts, weak_lift=WEAK_LIFT, no_token=NO_TOKEN, tiles=triton.next_power_of_2(num_tiles),
    )  # fmt: skip
    logprob, base_logprob, kl, soft_value, flip, lse_base, lse_guided = out.unbind()
    entropy = None if base is None else base.entropy
    return GuidedDraw(token, logprob, base_logprob, kl, soft_value, entropy, flip != 0, lse_base, lse_guided)


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
    min_p: Tensor | None = None,
    top_k: Tensor | None = None,
    top_p: Tensor | None = None,
    want_entropy: bool = False,
    any_greedy: bool = True,
    any_sampled: bool = True,
    backend: str | None = None,
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
        min_p, top_k, top_p: [B], see `truncation_threshold`; None where no row asks for it.
        want_entropy: also measure the base's entropy.
        any_greedy, any_sampled: False promises that no row has temperature 0, or a higher one.
        backend: see `choose_backend`.
    """
    if advantage is not None and not len(advantage):
        advantage = None
    inputs = _Inputs(
        logits, seeds, positions, choices, temperature, advantage, advantage_row, beta, min_p, top_k, top_p,
        want_entropy, any_greedy, any_sampled,
    )  # fmt: skip
    return _BACKENDS[choose_backend(logits.device, backend)](inputs)


def tilted_logits(logits: Tensor, advantage: Tensor, advantage_row: Tensor, beta: Tensor) -> Tensor:
    """`z + βĀ`, Ā centred under the base, f32[R, V]; −inf stays −inf, rows without a tilt stay as they are.

    logits: f32[R, V]. advantage: f32[G, V]. advantage_row: i64[R], −1 for none. beta: f32[R].
    """
    if not len(advantage):
        return logits
    mean = base_statistics(logits, advantage, advantage_row).mean
    return _add_shift(logits, advantage, advantage_row, beta, mean)


_BACKENDS = {"reference": _reference, "triton": _launch}
