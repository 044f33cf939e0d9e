"""New keys and values into their slots of the paged cache."""

# mypy: allow-untyped-defs, allow-incomplete-defs

from __future__ import annotations

import torch
from torch import Tensor

from trimtab.kernels.dispatch import choose_backend, jit, tl, triton

BLOCK = 1024  # elements of one token that a program moves


def _reference(keys: Tensor, values: Tensor, slots: Tensor, key_cache: Tensor, value_cache: Tensor) -> None:
    key_cache.view(-1, *key_cache.shape[2:]).index_copy_(0, slots, keys)
    value_cache.view(-1, *value_cache.shape[2:]).index_copy_(0, slots, values)


@jit
def _copy(
    new, new_stride_t, new_stride_h, slot, cache, cache_stride_s, cache_stride_h, num_heads: tl.constexpr,
    dim: tl.constexpr, block: tl.constexpr,
):  # fmt: skip
    """One block of a token's elements, [num_heads · dim] in all."""
    element = tl.program_id(1) * block + tl.arange(0, block)
    head, column = element // dim, element % dim
    inside = element < num_heads * dim
    source = new + tl.program_id(0).to(tl.int64) * new_stride_t + head * new_stride_h + column
    target = cache + slot * cache_stride_s + head * cache_stride_h + column
    tl.store(target, tl.load(source, mask=inside), mask=inside)


@jit
def _store(
    keys, values, slots, key_cache, value_cache, keys_stride_t, keys_stride_h, values_stride_t,
    values_stride_h, key_stride_s, key_stride_h, value_stride_s, value_stride_h, num_heads: tl.constexpr,
    dim: tl.constexpr, value_dim: tl.constexpr, block: tl.constexpr,
):  # fmt: skip
    slot = tl.load(slots + tl.program_id(0)).to(tl.int64)
    _copy(
        keys, keys_stride_t, keys_stride_h, slot, key_cache, key_stride_s, key_stride_h, num_heads, dim, block
    )
    _copy(
        values, values_stride_t, values_stride_h, slot, value_cache, value_stride_s, value_stride_h,
        num_heads, value_dim, block,
    )  # fmt: skip


def _launch(keys: Tensor, values: Tensor, slots: Tensor, key_cache: Tensor, value_cache: Tensor) -> None:
    assert all(tensor.stride(-1) == 1 for tensor in (keys, values, key_cache, value_cache))
    num_tokens, num_heads, dim = keys.shape
    value_dim = values.shape[2]
    _store[num_tokens, triton.cdiv(num_heads * max(dim, value_dim), BLOCK)](
        keys, values, slots, key_cache, value_cache, keys.stride(0), keys.stride(1), values.stride(0),
        values.stride(1), key_cache.stride(1), key_cache.stride(2), value_cache.stride(1),
        value_cache.stride(2), num_heads=num_heads, dim=dim, value_dim=value_dim, block=BLOCK,
    )  # fmt: skip


def store_kv(
    keys: Tensor,
    values: Tensor,
    slots: Tensor,
    key_cache: Tensor,
    value_cache: Tensor,
    backend: str | None = None,
) -> None:
    """Write each token's key and value at its slot, `block · block_size + offset`.

    Of two tokens with one slot either may win, so only a slot that nobody reads may be given twice.

    Args:
        keys: [T, Hkv, D]; heads and tokens may be strided (a transposed view), D may not.
        values: [T, Hkv, Dv], likewise.
        slots: i64[T], each within the cache.
        key_cache: [N, block_size, Hkv, D] in the keys' dtype, its blocks one after another in memory.
        value_cache: [N, block_size, Hkv, Dv], likewise.
        backend: see `choose_backend`.
    """
    assert keys.shape[:2] == values.shape[:2]
    assert keys.shape[1:] == key_cache.shape[2:]
    assert values.shape[1:] == value_cache.shape[2:]
    assert keys.dtype == key_cache.dtype and values.dtype == value_cache.dtype
    for cache in (key_cache, value_cache):
        assert cache.stride(0) == cache.shape[1] * cache.stride(1)
    _BACKENDS[choose_backend(keys.device, backend)](keys, values, slots, key_cache, value_cache)


_BACKENDS = {"reference": _reference, "triton": _launch}


def _rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """x [T, heads, D]; cos, sin [T, D]."""
    first, second = x.chunk(2, -1)
    turned = torch.cat([-second, first], -1)
    return x * cos[:, None] + turned * sin[:, None]


def _reference_rotated(
    qkv: Tensor, cos: Tensor, sin: Tensor, slots: Tensor, key_cache: Tensor, value_cache: Tensor
) -> Tensor:
    num_kv_heads, dim = key_cache.shape[2:]
    heads = qkv.view(len(qkv), -1, dim)
    queries, keys, values = heads.split([heads.shape[1] - 2 * num_kv_heads, num_kv_heads, num_kv_heads], 1)
    key_cache.flatten(0, 1)[slots] = _rotate(keys, cos, sin)
    value_cache.flatten(0, 1)[slots] = values
    return _rotate(queries, cos, sin)


@jit
def _heads(
    qkv, cos, sin, slots, key_cache, value_cache, out, cos_stride, sin_stride, key_stride_s, key_stride_h,
    value_stride_s, value_stride_h,
    num_heads: tl.constexpr, num_kv_heads: tl.constexpr, half: tl.constexpr, block: tl.constexpr,
):  # fmt: skip
    """One program for one head of one token: first the queries, then the keys, then the values."""
    token, head = tl.program_id(0).to(tl.int64), tl.program_id(1)
    at = tl.arange(0, block)
    inside = at < half
    dim: tl.constexpr = 2 * half
    source = qkv + (token * (num_heads + 2 * num_kv_heads) + head) * dim
    first = tl.load(source + at, mask=inside, other=0.0)
    second = tl.load(source + half + at, mask=inside, other=0.0)
    slot = tl.load(slots + token)
    if head >= num_heads + num_kv_heads:
        place = value_cache + slot * value_stride_s + (head - num_heads - num_kv_heads) * value_stride_h
        tl.store(place + at, first, mask=inside)
        tl.store(place + half + at, second, mask=inside)
    else:
        cos += token * cos_stride
        sin += token * sin_stride
        low = _turn(first, -second.to(tl.float32), cos, sin, at, inside)
        high = _turn(second, first.to(tl.float32), cos + half, sin + half, at, inside)
        if head < num_heads:
            place = out + (token * num_heads + head) * dim
        else:
            place = key_cache + slot * key_stride_s + (head - num_heads) * key_stride_h
        tl.store(place + at, low, mask=inside)
        tl.store(place + half + at, high, mask=inside)


@jit
def _turn(x, turned, cos, sin, at, inside):
    """x cos + turned sin, rounded as three operations on x's type are."""
    cosine = tl.load(cos + at, mask=inside, other=0.0).to(tl.float32)
    sine = tl.load(sin + at, mask=inside, other=0.0).to(tl.float32)
    kept = (x.to(tl.float32) * cosine).to(x.dtype).to(tl.float32)
    moved = (turned * sine).to(x.dtype).to(tl.float32)
    return (kept + moved).to(x.dtype)


def _launch_rotated(
    qkv: Tensor, cos: Tensor, sin: Tensor, slots: Tensor, key_cache: Tensor, value_cache: Tensor
) -> Tensor:
    assert qkv.is_contiguous()
    assert cos.stride(1) == sin.stride(1) == key_cache.stride(3) == value_cache.stride(3) == 1
    num_tokens, (num_kv_heads, dim) = len(qkv), key_cache.shape[2:]
    num_heads = qkv.shape[1] // dim - 2 * num_kv_heads
    out = torch.empty(num_tokens, num_heads, dim, dtype=qkv.dtype, device=qkv.device)
    _heads[num_tokens, num_heads + 2 * num_kv_heads](
        qkv, cos, sin, slots, key_cache, value_cache, out, cos.stride(0), sin.stride(0), key_cache.stride(1),
        key_cache.stride(2), value_cache.stride(1), value_cache.stride(2), num_heads=num_heads,
        num_kv_heads=num_kv_heads, half=dim // 2, block=triton.next_power_of_2(dim // 2), num_warps=1,
        enable_fp_fusion=False,
    )  # fmt: skip
    return out


def rope_store(
    qkv: Tensor,
    cos: Tensor,
    sin: Tensor,
    slots: Tensor,
    key_cache: Tensor,
    value_cache: Tensor,
    backend: str | None = None,
) -> Tensor:
    """Rotate queries and keys (J. Su et al., RoFormer, 2021; in halves, as Llama does), and write the key and
    value of every token to its slot, `block · block_size + offset`.

    Rounds where transformers does: both products and their sum, in the type of qkv.

    Args:
        qkv: [T, (H + 2 Hkv) · D], each token's queries, keys and values, heads one after another.
        cos, sin: [T, D] of its position, in the type of qkv, their scaling included.
        slots: i64[T]. key_cache, value_cache: [N, block_size, Hkv, D], in the type of qkv.
        backend: see `choose_backend`.

    Returns:
        The rotated queries [T, H, D].
    """
    assert qkv.dtype == key_cache.dtype == value_cache.dtype == cos.dtype == sin.dtype
    assert key_cache.shape == value_cache.shape
    run = _ROTATED_BACKENDS[choose_backend(qkv.device, backend)]
    return run(qkv, cos, sin, slots, key_cache, value_cache)


_ROTATED_BACKENDS = {"reference": _reference_rotated, "triton": _launch_rotated}
