"""That draws follow the distribution, at fixed seeds, and that these tests would notice if they did not."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from trimtab.kernels import philox
from trimtab.kernels.guided_logits import guided_logits

NUM_DRAWS, VOCAB_SIZE = 60_000, 64
GAP = 18.0


def check_draws_follow_the_tilt(strength: float = 1.0) -> None:
    """Full-vocabulary chi-square; strength: what the draws are made with, where the distribution has 1."""
    generator = torch.Generator().manual_seed(1)
    logits, advantage = (torch.randn(1, VOCAB_SIZE, generator=generator) for _ in range(2))
    advantage *= 2
    count = torch.zeros(VOCAB_SIZE, dtype=torch.float64)
    rows = NUM_DRAWS // 10
    for position in range(10):
        draw = guided_logits(
            logits.expand(rows, -1),
            seeds=torch.arange(rows),
            positions=torch.full((rows,), position),
            choices=torch.zeros(rows, dtype=torch.long),
            temperature=torch.ones(rows),
            advantage=advantage,
            advantage_row=torch.zeros(rows, dtype=torch.long),
            beta=torch.full((rows,), strength),
            any_greedy=False,
        )
        count += torch.bincount(draw.token, minlength=VOCAB_SIZE)
    expected = NUM_DRAWS * (logits + advantage).double().softmax(1)[0]
    freedom = VOCAB_SIZE - 1
    assert ((count - expected) ** 2 / expected).sum() < freedom + 10 * math.sqrt(2 * freedom)


def check_the_tail_is_kept(monkeypatch: pytest.MonkeyPatch, coarsen: Callable[[Tensor], Tensor]) -> None:
    """P(an improbable token beats one 18 nats above it), its random integer drawn from the 4096 smallest.

    A win needs u₁ < 16.7·e⁻¹⁸ = 1092·2⁻³², so no win is left out, and P(win) is 4096·2⁻³² times the share of
    wins counted here.
    """
    num_draws, window = 200_000, 4096
    generator = torch.Generator().manual_seed(2)
    likely = torch.randint(2**32, (num_draws, 1), generator=generator)
    unlikely = torch.randint(window, (num_draws, 1), generator=generator)
    integers = tuple(coarsen(word) for word in (likely, unlikely, likely, likely))
    monkeypatch.setattr(philox, "random_words", lambda *_: integers)
    draw = guided_logits(
        torch.tensor([[0.0, -GAP]]).expand(num_draws, -1),
        seeds=torch.zeros(num_draws, dtype=torch.long),
        positions=torch.zeros(num_draws, dtype=torch.long),
        choices=torch.zeros(num_draws, dtype=torch.long),
        temperature=torch.ones(num_draws),
    )
    expected = num_draws * 2**32 / window / (1 + math.exp(GAP))
    assert abs(int(draw.token.sum()) - expected) < 4 * math.sqrt(expected)


def check_a_request_draws_alike_in_every_row() -> None:
    logits = torch.randn(8, 100, generator=torch.Generator().manual_seed(3))
    ids = torch.arange(8)
    order = ids.flip(0)

    def draw(rows: Tensor) -> Tensor:
        keys = {"seeds": rows + 40, "positions": rows, "choices": rows % 2}
        return guided_logits(logits[rows], **keys, temperature=torch.full((8,), 2.0)).token

    assert torch.equal(draw(order), draw(ids)[order])


def test_draws_follow_the_tilt():
    check_draws_follow_the_tilt()


def test_the_tail_is_kept_at_a_gap_of_18_nats(monkeypatch: pytest.MonkeyPatch):
    check_the_tail_is_kept(monkeypatch, lambda word: word)


def test_a_request_draws_alike_in_every_row():
    check_a_request_draws_alike_in_every_row()


def test_a_strength_that_is_off_by_a_twentieth_is_noticed():
    with pytest.raises(AssertionError):
        check_draws_follow_the_tilt(strength=1.05)


def test_a_uniform_of_24_bits_is_noticed(monkeypatch: pytest.MonkeyPatch):
    with pytest.raises(AssertionError):
        check_the_tail_is_kept(monkeypatch, lambda word: (word >> 8 << 8) + 128)


def test_noise_keyed_by_row_is_noticed(monkeypatch: pytest.MonkeyPatch):
    noise = philox.gumbel_noise

    def keyed_by_row(seeds: Tensor, positions: Tensor, choices: Tensor, num_tokens: int) -> Tensor:
        return noise(torch.arange(len(seeds)), positions, choices, num_tokens)

    monkeypatch.setattr(philox, "gumbel_noise", keyed_by_row)
    with pytest.raises(AssertionError):
        check_a_request_draws_alike_in_every_row()
