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
