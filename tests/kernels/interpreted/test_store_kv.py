from __future__ import annotations

import pytest
import torch

from trimtab.kernels.store_kv import BLOCK, store_kv

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("num_heads", "dim", "value_dim"), [(3, 80, 48), (2, 16, 64), (9, 128, 128)])
def test_slots_hold_what_the_reference_puts_there_and_others_keep_theirs(
    num_heads: int, dim: int, value_dim: int, dtype: torch.dtype
):
    assert num_heads * dim < BLOCK or num_heads * dim % BLOCK
    generator = torch.Generator().manual_seed(0)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator).to(DEVICE, dtype)

    keys, values = (
        normal(num_heads, 13, dim).transpose(0, 1),
        normal(num_heads, 13, value_dim).transpose(0, 1),
    )
    slots = torch.randperm(7 * 8, generator=generator)[:13].to(DEVICE)
    # Caches of one layer out of a tensor that interleaves keys and values.
    cache = normal(7, 8, num_heads, dim + value_dim)
    expected = cache.clone()
    store_kv(keys, values, slots, cache[..., :dim], cache[..., dim:], backend="triton")
    store_kv(keys, values, slots, expected[..., :dim], expected[..., dim:], backend="reference")
    assert torch.equal(cache, expected)
    assert torch.equal(cache.flatten(0, 1)[slots, :, :dim], keys)
