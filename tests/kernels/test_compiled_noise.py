"""The compiled noise is the reference's, to the last bits of a logarithm."""

from __future__ import annotations

import shutil

import pytest
import torch

from trimtab.kernels.compiled_noise import compile_noise
from trimtab.kernels.philox import gumbel_noise


@pytest.mark.skipif(shutil.which("g++") is None, reason="needs a C++ compiler: g++")
def test_compiled_noise_equals_gumbel_noise_for_any_keys_and_ragged_vocabularies() -> None:
    noise = compile_noise()
    generator = torch.Generator().manual_seed(0)
    for num_rows, num_tokens in [(3, 1001), (1, 1001), (17, 1001), (2, 64)]:
        seeds = torch.randint(-(2**63), 2**63 - 1, (num_rows,), generator=generator)
        positions = torch.randint(2**31, (num_rows,), generator=generator)
        choices = torch.randint(5, (num_rows,), generator=generator)
        actual = noise(seeds, positions, choices, num_tokens)
        expected = gumbel_noise(seeds, positions, choices, num_tokens)
        assert actual.shape == (num_rows, num_tokens)
        torch.testing.assert_close(actual, expected, rtol=0, atol=4e-6)
