"""The ops of a decoder layer that are one launch each, bit for bit what their references give."""

from __future__ import annotations

import pytest
import torch

from trimtab.kernels.rms_norm import rms_norm
from trimtab.kernels.silu_mul import silu_mul
from trimtab.kernels.store_kv import rope_store

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
# The interpreter truncates where it should round to bfloat16: there only a GPU tells.
DTYPES = [torch.float32, torch.bfloat16] if DEVICE == "cuda" else [torch.float32]
GENERATOR = torch.Generator().manual_seed(0)


def normal(*shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.randn(*shape, generator=GENERATOR).to(DEVICE, dtype)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("size", [8, 48, 1024, 1500, 4096])
@pytest.mark.parametrize("adds", [False, True])
def test_rms_norm_is_the_reference_s(size: int, adds: bool, dtype: torch.dtype):
    x, weight = normal(3, 2 * size, dtype=dtype)[:, :size], normal(size, dtype=dtype)
    residual = normal(3, size, dtype=dtype) if adds else None
    total, normed = rms_norm(x, weight, 1e-6, residual, backend="triton")
    same_total, expected = rms_norm(x, weight, 1e-6, residual, backend="reference")
    assert torch.equal(total, same_total)
    tolerance = 1e-6 if dtype == torch.float32 else 1e-2  # the sum of squares runs in another order
    torch.testing.assert_close(normed, expected, rtol=tolerance, atol=tolerance)


def test_a_row_of_zeros_has_a_norm_and_rows_do_not_mix():
    x, weight = normal(4, 48), normal(48)
    x[2] = 0
    together = rms_norm(x, weight, 1e-6, backend="triton")[1]
    assert torch.equal(together[2], torch.zeros_like(together[2]))
    for row in range(4):
        assert torch.equal(rms_norm(x[row : row + 1], weight, 1e-6, backend="triton")[1][0], together[row])


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("size", [5, 1024, 1100])
def test_silu_mul_is_the_reference_s(size: int, dtype: torch.dtype):
    gate_up = 5 * normal(3, 2 * size, dtype=dtype)
    found, expected = (silu_mul(gate_up, backend=backend) for backend in ("triton", "reference"))
    torch.testing.assert_close(found, expected, rtol=1e-6 if dtype == torch.float32 else 1e-2, atol=1e-6)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("heads", "kv_heads", "dim"), [(4, 2, 16), (3, 1, 80), (8, 8, 128)])
def test_queries_are_rotated_and_slots_hold_rotated_keys_and_values_and_others_keep_theirs(
    heads: int, kv_heads: int, dim: int, dtype: torch.dtype
):
    num_tokens = 5
    qkv = normal(num_tokens, (heads + 2 * kv_heads) * dim, dtype=dtype)
    angle = normal(num_tokens, dim // 2).repeat(1, 2)
    cos, sin = (part.to(dtype) for part in (angle.cos(), angle.sin()))
    caches = [normal(3, 8, kv_heads, dim, dtype=dtype) for _ in range(2)]
    slots = torch.tensor([7, 0, 23, 11, 12], device=DEVICE)
    found, expected = [cache.clone() for cache in caches], [cache.clone() for cache in caches]
    queries = rope_store(qkv, cos, sin, slots, *found, backend="triton")
    same = rope_store(qkv, cos, sin, slots, *expected, backend="reference")
    assert torch.equal(queries, same)
    for mine, theirs, before in zip(found, expected, caches, strict=True):
        assert torch.equal(mine, theirs)
        assert not torch.equal(mine.flatten(0, 1)[slots], before.flatten(0, 1)[slots])
