"""The mask's Triton kernel, bit for bit what its reference gives."""

from __future__ import annotations

import pytest
import torch

from trimtab.kernels.penalties import apply_token_mask

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


@pytest.mark.parametrize("vocab", [5, 64, 1023, 1024, 2100])
@pytest.mark.parametrize("padding", [0, 7])
def test_it_forbids_what_the_reference_does_and_writes_nowhere_else(vocab: int, padding: int):
    generator = torch.Generator().manual_seed(vocab)
    wide = torch.randn(5, vocab + padding, generator=generator)
    words = torch.randint(-(2**31), 2**31, (3, -(-vocab // 32)), generator=generator).int()
    words[0], words[1, :1] = 0, -1
    rows = torch.tensor([4, 1, 2])
    found, expected = (wide.clone().to(DEVICE) for _ in range(2))
    apply_token_mask(found[:, :vocab], rows.to(DEVICE), words.to(DEVICE), backend="triton")
    apply_token_mask(expected[:, :vocab], rows.to(DEVICE), words.to(DEVICE), backend="reference")
    assert torch.equal(found, expected)
    assert torch.equal(found[[0, 3]].cpu(), wide[[0, 3]])
    assert torch.equal(found[:, vocab:].cpu(), wide[:, vocab:])
