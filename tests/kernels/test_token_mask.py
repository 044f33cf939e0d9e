"""Masks of tokens: what they forbid, and that guidance and draws go by what they leave."""

from __future__ import annotations

import math

import pytest
import torch

from trimtab.kernels.guided_logits import guided_logits
from trimtab.kernels.penalties import apply_token_mask

pytestmark = pytest.mark.usefixtures("backend")


def bitmask(allowed: torch.Tensor) -> torch.Tensor:
    """i32[R, W] of bool[R, V], bit by bit."""
    num_rows, vocab = allowed.shape
    words = torch.zeros(num_rows, -(-vocab // 32), dtype=torch.int64)
    for token in range(vocab):
        words[:, token // 32] |= allowed[:, token].long() << (token % 32)
    return torch.where(words < 2**31, words, words - 2**32).int()


@pytest.mark.parametrize("vocab", [5, 32, 63, 257])
def test_forbidden_tokens_are_minus_infinity_and_all_else_stays(vocab: int):
    generator = torch.Generator().manual_seed(vocab)
    logits = torch.randn(4, vocab, generator=generator)
    before, rows = logits.clone(), torch.tensor([3, 0])
    allowed = torch.rand(2, vocab, generator=generator) > 0.5
    apply_token_mask(logits, rows, bitmask(allowed))
    assert torch.equal(logits[1:3], before[1:3])
    for place, row in enumerate((3, 0)):
        assert torch.equal(logits[row] == -math.inf, ~allowed[place])
        assert torch.equal(logits[row][allowed[place]], before[row][allowed[place]])


@pytest.mark.parametrize("offset", [0.0, 1e3])
def test_a_mask_that_leaves_one_token_draws_it_for_nothing_and_an_empty_one_harms_no_other_row(offset: float):
    logits, vocab = torch.randn(3, 40, generator=torch.Generator().manual_seed(1)), 40
    allowed = torch.zeros(3, vocab, dtype=torch.bool)
    allowed[0, 33] = True
    allowed[2] = True
    apply_token_mask(logits, torch.arange(3), bitmask(allowed))
    keys = {name: torch.arange(3) for name in ("seeds", "positions", "choices")}
    advantage = torch.randn(3, vocab, generator=torch.Generator().manual_seed(2)) + offset
    draw = guided_logits(
        logits,
        **keys,
        temperature=torch.ones(3),
        advantage=advantage,
        advantage_row=torch.arange(3),
        beta=torch.full((3,), 5.0),
        want_entropy=True,
    )
    assert draw.token.tolist()[:2] == [33, -1]
    assert draw.kl[0] == 0
    assert max(abs(draw.logprob[0]), abs(draw.base_logprob[0])) < 1e-6
    assert draw.entropy is not None
    assert draw.entropy[0] == 0
    assert all(math.isfinite(values[2]) for values in (draw.kl, draw.logprob, draw.entropy))
