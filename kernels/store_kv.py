"""New keys and values into their slots of the paged cache."""

# mypy: allow-untyped-defs, allow-incomplete-defs

from __future__ import annotations

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
