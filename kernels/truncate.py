"""min-p, top-k and top-p as one threshold per row on the guided logits, and the draw from what they leave."""

# mypy: allow-untyped-defs, allow-incomplete-defs
from __future__ import annotations

from collections.abc import Callable
from typing import TypedDict

import torch
from torch import Tensor

from trimtab.kernels.cpu import draw as cpu
from trimtab.kernels.dispatch import choose_backend, jit, tl
from trimtab.kernels.philox import DRAW, MIN_TEMPERATURE, gumbel_at, gumbel_tile, keyed_draw
from trimtab.kernels.tile_reduce import NO_TOKEN


class Cuts(TypedDict, total=False):
    """What `truncation_threshold` cuts by, [B] each: by name, for those who hand it on. Left out or None: off
    in every row."""

    min_p: Tensor | None
    top_k: Tensor | None
    top_p: Tensor | None


@jit
def ordered_keys(x):
    """Unsigned integers in the order of x: sign bit set where x is positive, all bits flipped where not."""
    bits = x.to(tl.uint32, bitcast=True)
    return tl.where(bits >> 31 == 0, bits | 0x80000000, bits ^ 0xFFFFFFFF)


@jit
def at_least(key, otherwise):
    """The larger of `otherwise` and the number whose key is given; 0 is nobody's key."""
    bits = tl.where(key >> 31 == 0, key ^ 0xFFFFFFFF, key & 0x7FFFFFFF)
    return tl.where(key == 0, otherwise, tl.maximum(bits.to(tl.float32, bitcast=True), otherwise))


@jit
def search_slots(keys, weights, target):
    """The largest key with Σ weights[keys ≥ key] ≥ target; 0 if there is none."""
    found, step = tl.full((), 0, tl.uint32), tl.full((), 0x80000000, tl.uint32)
    while step > 0:
        mass = tl.sum(tl.where(keys >= (found | step), weights, 0.0), 0)
        found = tl.where(mass >= target, found | step, found)
        step = step >> 1
    return found


@jit
def search_row(
    logits, slots, vocab_size, top, inverse, cut, target, by_mass: tl.constexpr, block: tl.constexpr
):  # fmt: skip
    """`search_slots` over the row's tokens from cut on: two bits to a reading, until those that share the
    leading bits fit the slots, which is nearly always after half of the bits.

    Weights are 1; or, by mass, probabilities, and target then is the share of them to keep.
    """
    lane = tl.arange(0, block)
    if by_mass:
        total = tl.zeros((block,), tl.float32)
        for start in range(0, vocab_size, block):
            x = tl.load(logits + start + lane, mask=start + lane < vocab_size, other=float("-inf"))
            total += tl.where(x >= cut, tl.exp((x - top) * inverse), 0.0)
        target = tl.maximum(target * tl.sum(total, 0), 1e-30)
    found, above = tl.full((), 0, tl.uint32), tl.full((), 0.0, tl.float32)
    step = tl.full((), 0x40000000, tl.uint32)
    while step > 0x4000:
        found, above = _narrow(
            logits, vocab_size, top, inverse, cut, target, found, above, step, by_mass, block
        )
        step = step >> 2
    tl.debug_barrier()  # whoever reads the slots has done so
    count = 0
    for start in range(0, vocab_size, block):
        x = tl.load(logits + start + lane, mask=start + lane < vocab_size, other=float("-inf"))
        shares = (ordered_keys(x) & 0xFFFF0000) == found
        kept = (shares & (x >= cut) & (x > float("-inf"))).to(tl.int32)
        slot = count + tl.cumsum(kept, 0) - 1
        tl.store(slots + slot, x, mask=(kept > 0) & (slot < block))
        count += tl.sum(kept, 0)
    tl.debug_barrier()  # what one thread put into a slot another reads
    if count <= block:
        x = tl.load(slots + lane, mask=lane < count, other=float("-inf"))
        weights = tl.where(x > float("-inf"), 1.0, 0.0)
        if by_mass:
            weights *= tl.exp((x - top) * inverse)
        key = search_slots(ordered_keys(x), weights, target - above)
        found = tl.maximum(found, key)  # rounding may leave the slots short of what the readings counted
    else:
        while step > 0:
            found, above = _narrow(
                logits, vocab_size, top, inverse, cut, target, found, above, step, by_mass, block
            )
            step = step >> 2
    return found


@jit
def _narrow(
    logits, vocab_size, top, inverse, cut, target, found, above, step, by_mass: tl.constexpr,
    block: tl.constexpr,
):  # fmt: skip
    """One reading: two more bits of the key, and the weight of what lies above all keys that have them."""
    lane = tl.arange(0, block)
    first = tl.zeros((block,), tl.float32)
    second, third = first, first
    for start in range(0, vocab_size, block):
        x = tl.load(logits + start + lane, mask=start + lane < vocab_size, other=float("-inf"))
        weight = tl.where((x >= cut) & (x > float("-inf")), 1.0, 0.0)
        if by_mass:
            weight *= tl.exp((x - top) * inverse)
        keys = ordered_keys(x)
        first += tl.where(keys >= found + step, weight, 0.0)
        second += tl.where(keys >= found + 2 * step, weight, 0.0)
        third += tl.where(keys >= found + 3 * step, weight, 0.0)
    one, two, three = tl.sum(first, 0), tl.sum(second, 0), tl.sum(third, 0)
    bits = tl.where(three >= target, 3, tl.where(two >= target, 2, tl.where(one >= target, 1, 0)))
    above = tl.where(bits == 3, above, tl.where(bits == 2, three, tl.where(bits == 1, two, one)))
    return found + bits.to(tl.uint32) * step, above


@jit
def collect(
    logits, slot_values, slot_tokens, vocab_size, top, inverse, cut, floor, block: tl.constexpr
):  # fmt: skip
    """Put tokens from floor on into slots, in order; how many there are, and the mass from cut on."""
    lane = tl.arange(0, block)
    count = 0
    total = tl.zeros((block,), tl.float32)
    for start in range(0, vocab_size, block):
        x = tl.load(logits + start + lane, mask=start + lane < vocab_size, other=float("-inf"))
        kept = ((x >= floor) & (x > float("-inf"))).to(tl.int32)
        slot = count + tl.cumsum(kept, 0) - 1
        there = (kept > 0) & (slot < block)
        tl.store(slot_values + slot, x, mask=there)
        tl.store(slot_tokens + slot, start + lane, mask=there)
        count += tl.sum(kept, 0)
        total += tl.where(x < cut, 0.0, tl.exp((x - top) * inverse))  # a NaN is not below the cut
    return count, tl.sum(total, 0)


NUM_LIKELIEST = 64  # tokens among which a nucleus is looked for before all
BINS_PER_NAT = 32  # of the histogram that finds a wide one, in nats at the row's temperature
NUM_BINS = 1024

BLOCK_V, NUM_WARPS = 4096, 16  # one program per row; its slots are as many as its lanes


def _reference(
    guided: Tensor, temperature: Tensor, min_p: Tensor | None, top_k: Tensor | None, top_p: Tensor | None
) -> Tensor:
    threshold = torch.full_like(temperature, -torch.inf)
    if min_p is not None:
        threshold = guided.amax(1) + temperature * min_p.log()
    if top_k is not None:
        rows = ((top_k > 0) & (top_k < guided.shape[1])).nonzero()[:, 0]
        if len(rows):
            smallest = _kth_largest(guided[rows], top_k[rows])
            threshold[rows] = torch.maximum(threshold[rows], smallest)
    if top_p is not None:
        rows = ((top_p < 1) & (temperature > 0)).nonzero()[:, 0]
        if len(rows) == len(guided):
            threshold = _nucleus(guided, temperature, threshold, top_p)
        elif len(rows):
            threshold[rows] = _nucleus(guided[rows], temperature[rows], threshold[rows], top_p[rows])
    return threshold.masked_fill_(temperature == 0, -torch.inf)


def _kth_largest(logits: Tensor, k: Tensor) -> Tensor:
    return logits.topk(int(k.max())).values.gather(1, (k - 1)[:, None])[:, 0]


def _nucleus(logits: Tensor, temperature: Tensor, threshold: Tensor, top_p: Tensor) -> Tensor:
    """The largest threshold [B] that keeps top_p of the mass that the given threshold keeps."""
    below_top = (logits - logits.amax(1, keepdim=True)).div_(temperature[:, None])
    if (threshold > -torch.inf).any():
        below_top.masked_fill_(logits < threshold[:, None], -torch.inf)
    probabilities = below_top.softmax(1)
    most = min(NUM_LIKELIEST, logits.shape[1])
    values, tokens = logits.topk(most)
    mass = probabilities.gather(1, tokens).double().cumsum_(1)
    last = (mass < top_p.double()[:, None]).sum(1)
    found = values.gather(1, last.clamp(max=most - 1)[:, None])[:, 0]
    rows = (last == most).nonzero()[:, 0]
    if len(rows):
        found[rows] = _wide_nucleus(logits[rows], below_top[rows], probabilities[rows], top_p[rows])
    return torch.maximum(threshold, found)


def _wide_nucleus(logits: Tensor, below_top: Tensor, probabilities: Tensor, top_p: Tensor) -> Tensor:
    """The same where the likeliest few do not suffice: of a histogram's bins one has to be sorted."""
    weight = probabilities.double()
    target = top_p.double()[:, None] * weight.sum(1, keepdim=True)
    bins = below_top.nan_to_num(nan=0.0).mul_(-BINS_PER_NAT).clamp_(max=NUM_BINS - 1).long()
    mass = weight.new_zeros(len(logits), NUM_BINS).scatter_add_(1, bins, weight).cumsum_(1)
    reached = (mass < target).sum(1, keepdim=True).clamp_(max=NUM_BINS - 1)
    outside = bins != reached
    most = int((~outside).sum(1).max())

    values, tokens = logits.masked_fill(outside, -torch.inf).topk(most)
    above = torch.where(reached > 0, mass.gather(1, (reached - 1).clamp_(min=0)), 0)
    mass = weight.masked_fill_(outside, 0).gather(1, tokens).cumsum_(1).add_(above)
    last = (mass < target).sum(1, keepdim=True).clamp_(max=most - 1)
    return values.gather(1, last)[:, 0]


def _reference_draw(
    guided: Tensor,
    temperature: Tensor,
    min_p: Tensor | None,
    top_k: Tensor | None,
    top_p: Tensor | None,
    keys: tuple[Tensor, Tensor, Tensor],
) -> Tensor:
    seeds, positions, choices = keys
    token = keyed_draw(
        guided,
        seeds=seeds,
        positions=positions,
        choices=choices,
        temperature=temperature,
        threshold=_reference(guided, temperature, min_p, top_k, top_p),
    )
    return token.masked_fill_(~guided.amax(1).isfinite(), NO_TOKEN)


@jit
def _top_k(logits, slots, vocab_size, top, inverse, cut, x, has_k, k, block: tl.constexpr):
    """The threshold of the k likeliest of those from cut on. x: the tokens in slots; has_k: k are there."""
    k = k.to(tl.float32)
    if has_k:
        key = search_slots(ordered_keys(x), tl.where(x > float("-inf"), 1.0, 0.0), k)
    else:
        key = search_row(logits, slots, vocab_size, top, inverse, cut, k, by_mass=False, block=block)
    return at_least(key, cut)


@jit
def _top_p(
    logits, slots, vocab_size, top, inverse, cut, threshold, floor, total, x, p, block: tl.constexpr
):  # fmt: skip
    """The threshold of p of the mass from `threshold` on.

    x: the tokens from floor on, none if they did not fit. total: the mass from cut on.
    """
    weights = tl.where(x >= threshold, tl.exp((x - top) * inverse), 0.0)
    collected = tl.sum(weights, 0)
    whole = threshold >= floor
    target = tl.maximum(p * tl.where(whole, collected, total), 1e-30)  # of nothing the likeliest stays
    if (whole | (threshold == cut)) & (collected >= target):
        key = search_slots(ordered_keys(x), weights, target)
    else:
        key = search_row(logits, slots, vocab_size, top, inverse, threshold, p, by_mass=True, block=block)
    return at_least(key, threshold)


@jit
def _draw_row(
    logits, vocab_size, threshold, heat, inverse, seed, position, choice,
    purpose: tl.constexpr, block: tl.constexpr,
):  # fmt: skip
    lane = tl.arange(0, block)
    best = tl.full((block,), float("-inf"), tl.float32)
    tokens = tl.zeros((block,), tl.int32)
    for start in range(0, vocab_size, block):
        x = tl.load(logits + start + lane, mask=start + lane < vocab_size, other=float("-inf"))
        noise = gumbel_tile(seed, position, choice, start, purpose, block)
        score = tl.where(heat == 0, x, x * inverse + noise)
        better = (x >= threshold) & (score > best)
        best, tokens = tl.where(better, score, best), tl.where(better, start + lane, tokens)
    return tl.min(tl.where(best == tl.max(best, 0), tokens, vocab_size), 0)


@jit
def _draw_slots(
    x, tokens, threshold, heat, inverse, seed, position, choice, purpose: tl.constexpr, block: tl.constexpr
):  # fmt: skip
    noise = gumbel_at(seed, position, choice, tokens, purpose)
    score = tl.where(heat == 0, x, x * inverse + noise)
    best = tl.argmax(tl.where(x >= threshold, score, float("-inf")), 0)
    return tl.sum(tl.where(tl.arange(0, block) == best, tokens, 0), 0)


@jit
def _rows(
    logits, temperature, log_min_p, top_k, top_p, seeds, positions, choices, out,
    slot_values, slot_tokens, stride, vocab_size,
    draws: tl.constexpr, purpose: tl.constexpr, min_temperature: tl.constexpr, no_token: tl.constexpr,
    block: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    logits += row * stride
    slot_values += row * block
    slot_tokens += row * block
    lane = tl.arange(0, block)
    heat = tl.load(temperature + row)
    inverse = 1.0 / tl.maximum(heat, min_temperature)

    tops = tl.full((block,), float("-inf"), tl.float32)
    for start in range(0, vocab_size, block):
        x = tl.load(logits + start + lane, mask=start + lane < vocab_size, other=float("-inf"))
        tops = tl.maximum(tops, x)
    top = tl.max(tops, 0)

    cut = tl.full((), float("-inf"), tl.float32)
    if log_min_p is not None:
        cut = tl.where(heat > 0, top + heat * tl.load(log_min_p + row), cut)
    # Half the lanes hold a token that reaches the median of their largest; rarely do more tokens than fit.
    floor = tl.where(heat > 0, cut, top)
    if vocab_size > block:
        median = search_slots(ordered_keys(tops), tl.where(tops > float("-inf"), 1.0, 0.0), block // 2)
        floor = at_least(median, floor)
    count, total = collect(logits, slot_values, slot_tokens, vocab_size, top, inverse, cut, floor, block)
    sound = (total > 0) & (total < float("inf"))
    tl.debug_barrier()  # what one thread put into a slot another reads
    fits = count <= block
    x = tl.load(slot_values + lane, mask=fits & (lane < count), other=float("-inf"))

    threshold = cut
    cuts = sound & (heat > 0)
    if top_k is not None:
        k = tl.load(top_k + row)
        if cuts & (k > 0) & (k < vocab_size):
            threshold = _top_k(
                logits, slot_values, vocab_size, top, inverse, cut, x, fits & (count >= k), k, block
            )
    if top_p is not None:
        p = tl.load(top_p + row)
        if cuts & (p < 1):
            threshold = _top_p(
                logits, slot_values, vocab_size, top, inverse, cut, threshold, floor, total, x, p, block
            )

    if draws:
        seed, position, choice = tl.load(seeds + row), tl.load(positions + row), tl.load(choices + row)
        threshold = tl.where(heat > 0, threshold, top)
        if fits & (threshold >= floor):
            tokens = tl.load(slot_tokens + lane, mask=lane < count, other=0)
            token = _draw_slots(x, tokens, threshold, heat, inverse, seed, position, choice, purpose, block)
        else:
            token = _draw_row(
                logits, vocab_size, threshold, heat, inverse, seed, position, choice, purpose, block
            )
        tl.store(out + row, tl.where(sound, token, no_token).to(tl.int64))
    else:
        tl.store(out + row, threshold)


def _launch(
    guided: Tensor,
    temperature: Tensor,
    min_p: Tensor | None,
    top_k: Tensor | None,
    top_p: Tensor | None,
    keys: tuple[Tensor, Tensor, Tensor] | None = None,
) -> Tensor:
    """The rows' thresholds; with keys (seeds, positions, choices) their tokens."""
    assert guided.stride(1) == 1
    if keys is None and top_k is None and top_p is None:
        return _reference(guided, temperature, min_p, None, None)  # a maximum, with nothing to search
    num_rows, vocab_size = guided.shape
    out = torch.empty_like(temperature if keys is None else keys[0])
    slots = torch.empty(2, num_rows, BLOCK_V, dtype=torch.int32, device=guided.device)
    seeds, positions, choices = (None, None, None) if keys is None else keys
    _rows[num_rows,](
        guided, temperature, None if min_p is None else min_p.log(), top_k, top_p, seeds, positions, choices,
        out, slots[0].view(torch.float32), slots[1], guided.stride(0), vocab_size,
        draws=keys is not None, purpose=DRAW, min_temperature=MIN_TEMPERATURE, no_token=NO_TOKEN,
        block=BLOCK_V, num_warps=NUM_WARPS, enable_fp_fusion=False,
    )  # fmt: skip
    return out


def truncation_threshold(
    guided_logits: Tensor,
    temperature: Tensor,
    min_p: Tensor | None = None,
    top_k: Tensor | None = None,
    top_p: Tensor | None = None,
    backend: str | None = None,
) -> Tensor:
    """The smallest guided logit that a row may draw.

    On the distribution at the row's temperature: min-p keeps tokens with at least min_p times the probability
    of the likeliest; of these top-k keeps the k likeliest; of these, renormalised, top-p keeps the fewest
    likeliest tokens with a mass of at least top_p. Ties at the threshold are all kept.

    Args:
        guided_logits: f32[B, V]; −inf marks a masked token.
        temperature: f32[B]; rows at 0 are not truncated.
        min_p: f32[B], 0 is off. top_k: i64[B], 0 is off. top_p: f32[B], 1 is off.
        backend: see `choose_backend`; Triton never waits for the device.

    Returns:
        f32[B]: tokens with `guided_logits >= threshold` may be drawn; −inf where nothing is cut.
    """
    run = _THRESHOLDS[choose_backend(guided_logits.device, backend, _THRESHOLDS)]
    return run(guided_logits, temperature, min_p, top_k, top_p)


def truncate_and_draw(
    guided: Tensor,
    *,
    seeds: Tensor,
    positions: Tensor,
    choices: Tensor,
    temperature: Tensor,
    min_p: Tensor | None = None,
    top_k: Tensor | None = None,
    top_p: Tensor | None = None,
    backend: str | None = None,
) -> Tensor:
    """Draw one token per row from what the cuts of `truncation_threshold` leave of it.

    The draw is `keyed_draw`'s, so that a row's token depends on its own logits, settings and keys alone.

    Args:
        guided: f32[B, V]; −inf marks a masked token.
        seeds, positions, choices: i64[B].
        temperature: f32[B], 0 is greedy and not truncated. min_p, top_k, top_p: see `truncation_threshold`.
        backend: see `choose_backend`; Triton needs one launch and never waits for the device.

    Returns:
        i64[B]; −1 where the row holds a NaN or no finite logit.
    """
    run = _DRAWS[choose_backend(guided.device, backend, _DRAWS)]
    return run(guided, temperature, min_p, top_k, top_p, (seeds, positions, choices))


_THRESHOLDS: dict[str, Callable[..., Tensor]] = {
    "reference": _reference,
    "triton": _launch,
    "cpu": cpu.truncation_threshold,
}
_DRAWS: dict[str, Callable[..., Tensor]] = {
    "reference": _reference_draw,
    "triton": _launch,
    "cpu": cpu.truncate_and_draw,
}
