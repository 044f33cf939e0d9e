"""What `truncate` is made of on a GPU: the k-th or nucleus's last token of a row without sorting it.

A row's threshold is searched bit by bit over keys that order as its logits do: the largest key with
count(≥ key) ≥ k, then the largest with mass(≥ key) ≥ p·Z. The row's likeliest tokens are first put into slots
that fit the registers of its program, and the row is read again and again only where they do not decide.
Sums are taken in fp32 and in one order; a count is a sum of ones, exact below 2²⁴.
"""

# mypy: allow-untyped-defs, allow-incomplete-defs

from __future__ import annotations

from trimtab.kernels.dispatch import jit, tl


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
def search_row(logits, vocab_size, top, inverse, cut, target, by_mass: tl.constexpr, block: tl.constexpr):
    """`search_slots` over the row's tokens from cut on, two bits to a reading.

    Weights are 1; or, by mass, probabilities, and target then is the share of them to keep.
    """
    lane = tl.arange(0, block)
    if by_mass:
        total = tl.zeros((block,), tl.float32)
        for start in range(0, vocab_size, block):
            x = tl.load(logits + start + lane, mask=start + lane < vocab_size, other=float("-inf"))
            total += tl.where(x >= cut, tl.exp((x - top) * inverse), 0.0)
        target = tl.maximum(target * tl.sum(total, 0), 1e-30)
    found, step = tl.full((), 0, tl.uint32), tl.full((), 0x40000000, tl.uint32)
    while step > 0:
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
        bits = tl.where(tl.sum(second, 0) >= target, 2, tl.where(tl.sum(first, 0) >= target, 1, 0))
        bits = tl.where(tl.sum(third, 0) >= target, 3, bits)
        found += bits.to(tl.uint32) * step
        step = step >> 2
    return found


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
