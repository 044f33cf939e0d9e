"""Rotary embedding of queries and keys, with the new keys and values written into the paged cache."""

# mypy: allow-untyped-defs, allow-incomplete-defs

from __future__ import annotations

import torch
from torch import Tensor

from trimtab.kernels.dispatch import choose_backend, jit, tl, triton


def _rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """x [T, heads, D]; cos, sin [T, D]."""
    first, second = x.chunk(2, -1)
    turned = torch.cat([-second, first], -1)
    return x * cos[:, None] + turned * sin[:, None]


def _reference(
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


def _launch(
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
    run = _BACKENDS[choose_backend(qkv.device, backend)]
    return run(qkv, cos, sin, slots, key_cache, value_cache)


_BACKENDS = {"reference": _reference, "triton": _launch}
