"""`gumbel_noise` on a CPU as one loop, compiled by TorchInductor: every word stays in registers.

The arithmetic of philox.py once more, written for a compiler: no scratch memory, nothing in place.
"""

from __future__ import annotations

import torch
from torch import Tensor

from trimtab.kernels.philox import (
    DRAW,
    LARGEST_UNIFORM,
    MASK,
    MULTIPLIER_0,
    MULTIPLIER_1,
    NUM_ROUNDS,
    WEYL_0,
    WEYL_1,
    NoiseFunction,
)

MIN_ROWS = 2  # torch.compile gives a size of 1 a graph of its own


def _noise(seeds: Tensor, positions: Tensor, choices: Tensor, num_blocks: int) -> Tensor:
    word_0 = torch.arange(num_blocks, device=seeds.device)[None]
    word_1, word_2 = (positions & MASK)[:, None], (choices & MASK)[:, None]
    word_3 = torch.full_like(word_1, DRAW)
    key_0, key_1 = (seeds & MASK)[:, None], ((seeds >> 32) & MASK)[:, None]
    for _ in range(NUM_ROUNDS):
        product_0, product_1 = word_0 * MULTIPLIER_0, word_2 * MULTIPLIER_1
        word_0 = ((product_1 >> 32) ^ word_1 ^ key_0) & MASK
        word_2 = ((product_0 >> 32) ^ word_3 ^ key_1) & MASK
        word_1, word_3 = product_1 & MASK, product_0 & MASK
        key_0, key_1 = (key_0 + WEYL_0) & MASK, (key_1 + WEYL_1) & MASK
    words = torch.stack((word_0, word_1, word_2, word_3), -1).flatten(1)
    uniform = (words.float() * 2.0**-32 + 2.0**-33).clamp(max=LARGEST_UNIFORM)
    return -torch.log(-torch.log1p(-uniform))


def compile_noise() -> NoiseFunction:
    """`gumbel_noise` for the draw, compiled when it is first called: some seconds, later starts less.

    The first call raises RuntimeError where there is no C++ compiler.
    """
    compiled = torch.compile(_noise, dynamic=True, fullgraph=True)

    def noise(seeds: Tensor, positions: Tensor, choices: Tensor, num_tokens: int) -> Tensor:
        rows = len(seeds)
        if rows < MIN_ROWS:
            seeds, positions, choices = (x.expand(MIN_ROWS).contiguous() for x in (seeds, positions, choices))
        out: Tensor = compiled(seeds, positions, choices, -(-num_tokens // 4))
        return out[:rows, :num_tokens]

    return noise
