from __future__ import annotations

import torch

from trimtab.kernels.dispatch import jit, tl
from trimtab.kernels.philox import gumbel_noise, gumbel_tile

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


@jit
def _noise(out, seeds, positions, choices, purpose: tl.constexpr, tiles: tl.constexpr, block: tl.constexpr):
    row = tl.program_id(0)
    seed, position, choice = tl.load(seeds + row), tl.load(positions + row), tl.load(choices + row)
    for tile in range(tiles):
        noise = gumbel_tile(seed, position, choice, tile * block, purpose, block)
        tl.store(out + row * tiles * block + tile * block + tl.arange(0, block), noise)


def test_a_tile_of_noise_is_the_reference_s():
    seeds = torch.tensor([0, -1, 2**63 - 1, -(2**63), 1234567890123456789], device=DEVICE)
    positions = torch.tensor([0, 2**31 - 1, 2**31, 5, 4096], device=DEVICE)
    choices = torch.tensor([0, 1, 127, 2**32 - 1, 3], device=DEVICE)
    for purpose, tiles, block in ((0, 3, 1024), (7, 40, 16)):
        out = torch.empty(5, tiles * block, device=DEVICE)
        _noise[5,](out, seeds, positions, choices, purpose, tiles, block)
        expected = gumbel_noise(seeds, positions, choices, tiles * block, purpose)
        torch.testing.assert_close(out, expected, rtol=1e-6, atol=2e-6)
