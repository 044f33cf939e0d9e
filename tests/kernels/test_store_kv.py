from __future__ import annotations

import pytest
import torch

from trimtab.kernels.store_kv import store_kv


def test_a_token_is_stored_at_its_block_and_offset_and_nowhere_else():
    keys = torch.arange(1.0, 13).view(2, 3, 2).transpose(0, 1)  # [3, 2, 2]
    values = -torch.arange(1.0, 7).view(3, 2, 1)
    key_cache, value_cache = torch.zeros(4, 8, 2, 2), torch.zeros(4, 8, 2, 1)
    store_kv(keys, values, torch.tensor([8 * 3 + 7, 0, 8 * 1 + 2]), key_cache, value_cache)
    for token, (block, offset) in enumerate(((3, 7), (0, 0), (1, 2))):
        assert torch.equal(key_cache[block, offset], keys[token])
        assert torch.equal(value_cache[block, offset], values[token])
    assert (key_cache != 0).sum() == keys.numel()
    assert (value_cache != 0).sum() == values.numel()


def test_keys_of_another_type_than_the_cache_s_are_refused():
    caches = torch.zeros(4, 8, 2, 2), torch.zeros(4, 8, 2, 1)
    with pytest.raises(AssertionError):
        store_kv(torch.ones(1, 2, 2).double(), torch.ones(1, 2, 1), torch.tensor([0]), *caches)
