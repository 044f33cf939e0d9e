from __future__ import annotations

import math
import random

import pytest
import torch

from trimtab.kernels import philox
from trimtab.kernels.philox import MASK, gumbel_noise, philox_4x32, random_words

# Random123's kat_vectors: counter, key, output.
KNOWN = [
    ("00000000 00000000 00000000 00000000", "00000000 00000000", "6627e8d5 e169c58d bc57ac4c 9b00dbd8"),
    ("ffffffff ffffffff ffffffff ffffffff", "ffffffff ffffffff", "408f276d 41c83b0e a20bc7c6 6d5451fd"),
    ("243f6a88 85a308d3 13198a2e 03707344", "a4093822 299f31d0", "d16cfe09 94fdcceb 5001e420 24126ea1"),
]


def words(text: str) -> tuple[torch.Tensor, ...]:
    return tuple(torch.tensor(int(word, 16)) for word in text.split())


def in_python(counter: list[int], key: list[int]) -> list[int]:
    """The algorithm as published, on Python's integers."""
    c0, c1, c2, c3 = counter
    k0, k1 = key
    for _ in range(10):
        p0, p1 = 0xD2511F53 * c0, 0xCD9E8D57 * c2
        c0, c1, c2, c3 = (p1 >> 32) ^ c1 ^ k0, p1 & MASK, (p0 >> 32) ^ c3 ^ k1, p0 & MASK
        k0, k1 = (k0 + 0x9E3779B9) & MASK, (k1 + 0xBB67AE85) & MASK
    return [c0, c1, c2, c3]


@pytest.mark.parametrize(("counter", "key", "expected"), KNOWN)
def test_known_answers(counter: str, key: str, expected: str):
    assert philox_4x32(words(counter), words(key)) == words(expected)


def test_the_counter_is_block_position_choice_purpose_and_the_key_the_seed():
    draw = random.Random(0)
    seeds = [draw.randrange(-(2**63), 2**63) for _ in range(5)]
    positions = [draw.randrange(2**31) for _ in range(5)]
    choices = [draw.randrange(128) for _ in range(5)]
    out = random_words(torch.tensor(seeds), torch.tensor(positions), torch.tensor(choices), 41, purpose=3)
    for row in range(5):
        for block in range(11):
            key = [seeds[row] & MASK, (seeds[row] >> 32) & MASK]
            expected = in_python([block, positions[row], choices[row], 3], key)
            assert [int(word[row, block]) for word in out] == expected


def test_noise_is_the_gumbel_quantile_of_the_integers():
    ids = torch.arange(6)
    noise = gumbel_noise(ids, ids, ids, 4001)
    r = torch.stack(random_words(ids, ids, ids, 4001), 2).flatten(1)[:, :4001].double()
    exact = -(-torch.log1p(-(r + 0.5) * 2.0**-32)).log()
    assert noise.shape == (6, 4001)
    assert noise.dtype == torch.float32
    assert (noise - exact).abs()[exact > -2].max() < 1e-5  # below −2 fp32 cannot hold 1 − u so well


def test_noise_depends_on_seed_position_choice_token_and_purpose_alone():
    seeds = torch.tensor([5, 6, 5 + 2**32, 5, 5])
    positions, choices = torch.tensor([7, 7, 7, 8, 7]), torch.tensor([0, 0, 0, 0, 1])
    noise = gumbel_noise(seeds, positions, choices, 1000)
    for a in range(5):
        for b in range(a):
            assert not torch.equal(noise[a], noise[b])
    order = torch.tensor([3, 1, 4, 0, 2])
    assert torch.equal(gumbel_noise(seeds[order], positions[order], choices[order], 1000), noise[order])
    assert torch.equal(gumbel_noise(seeds[1:2], positions[1:2], choices[1:2], 37), noise[1:2, :37])
    assert not torch.equal(gumbel_noise(seeds, positions, choices, 1000, purpose=1), noise)


def test_noise_is_finite_at_the_ends_and_keeps_the_tail(monkeypatch: pytest.MonkeyPatch):
    smallest = torch.arange(200)
    ends = torch.cat([smallest, torch.tensor([MASK - 1, MASK])])[None]
    monkeypatch.setattr(philox, "random_words", lambda *_: (ends,) * 4)
    noise = gumbel_noise(torch.zeros(1), torch.zeros(1), torch.zeros(1), 808).view(-1, 4)[:, 0]
    assert noise.isfinite().all()
    assert noise[0] == pytest.approx(-math.log(2.0**-33), abs=1e-5)
    assert noise[-1] == pytest.approx(-math.log(24 * math.log(2)), abs=1e-5)
    # P(g > 18) = 1 − exp(−e⁻¹⁸): of 2³² integers the 65.4 smallest.
    assert int((noise > 18).sum()) == round(2**32 * -math.expm1(-math.exp(-18)))
