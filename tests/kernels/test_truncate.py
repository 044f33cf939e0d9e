from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from trimtab.kernels.truncate import truncation_threshold


def kept(logits: list[float], temperature: float = 1.0, **cuts: float) -> list[int]:
    row = torch.tensor([logits])
    tensors = {name: torch.tensor([value]) for name, value in cuts.items()}
    threshold = truncation_threshold(row, torch.tensor([temperature]), **tensors)
    return (row >= threshold[:, None])[0].nonzero()[:, 0].tolist()


def by_sorting(logits: Tensor, temperature: float, min_p: float, top_k: int, top_p: float) -> Tensor:
    """Which tokens of one row the cuts leave, in float64, token by token."""
    p = (logits.double() / temperature).softmax(0)
    alive = p > 0
    if min_p > 0:
        alive &= p >= min_p * p.max() * (1 - 1e-6)
    if 0 < top_k < len(logits):
        alive &= logits >= logits.sort(descending=True).values[top_k - 1]
    if top_p < 1:
        p = torch.where(alive, p, 0)
        p /= p.sum()
        values, order = logits.masked_fill(~alive, -torch.inf).sort(descending=True)
        before = p[order].cumsum(0) - p[order]
        alive &= logits >= values[before < top_p].min()
    return alive


LOGS = [math.log(p) for p in (0.4, 0.3, 0.2, 0.06, 0.04)]


def test_each_cut_alone_on_probabilities_one_can_read():
    assert kept(LOGS, min_p=0.45) == [0, 1, 2]  # at least 0.18
    assert kept(LOGS, top_k=2) == [0, 1]
    assert kept(LOGS, top_p=0.65) == [0, 1]  # 0.4 falls short, 0.7 does not
    assert kept(LOGS, top_p=0.75) == [0, 1, 2]


def test_top_p_is_of_what_min_p_and_top_k_leave():
    assert kept(LOGS, top_k=3, top_p=0.76) == [0, 1]  # 0.7 of 0.9 is 0.78
    assert kept(LOGS, min_p=0.45, top_p=0.76) == [0, 1]
    assert kept(LOGS, top_p=0.76) == [0, 1, 2]


def test_cuts_are_made_at_the_temperature():
    # At temperature 2 the weights are √p: 0.632, 0.548, 0.447, 0.245, 0.2, in all 2.072.
    assert kept(LOGS, temperature=2.0, top_p=0.65) == [0, 1, 2]
    assert kept(LOGS, temperature=2.0, min_p=0.5) == [0, 1, 2]
    assert kept(LOGS, temperature=0.5, top_p=0.65) == [0, 1]  # 0.16, 0.09, 0.04, … in all 0.2952
    assert kept(LOGS, temperature=2.0, top_k=2) == [0, 1]


def test_ties_at_the_threshold_are_all_kept():
    assert kept([1.0, 2.0, 2.0, 2.0, 0.0], top_k=2) == [1, 2, 3]
    assert kept([1.0, 2.0, 2.0, 2.0, 0.0], top_p=0.1) == [1, 2, 3]
    assert kept([0.0] * 6, min_p=1.0, top_k=1, top_p=0.01) == [0, 1, 2, 3, 4, 5]


def test_rows_that_ask_for_nothing_or_are_greedy_are_not_cut():
    assert kept(LOGS, min_p=0.0, top_k=0, top_p=1.0) == [0, 1, 2, 3, 4]
    assert kept(LOGS, temperature=0.0, min_p=0.9, top_k=1, top_p=0.1) == [0, 1, 2, 3, 4]
    assert kept(LOGS, top_k=9) == [0, 1, 2, 3, 4]


def test_the_likeliest_token_always_stays():
    assert kept(LOGS, min_p=1.0, top_p=1e-9) == [0]
    assert kept([-math.inf, -700.0, -math.inf], top_p=1e-9, min_p=1.0, top_k=1) == [1]


@pytest.mark.parametrize("spread", [0.0, 0.01, 1.0, 8.0])
def test_agrees_with_a_sort_in_float64(spread: float):
    generator = torch.Generator().manual_seed(0)
    num_rows, vocab_size = 60, 700
    logits = spread * torch.randn(num_rows, vocab_size, generator=generator)
    logits[::2] = (4 * logits[::2]).round() / 4  # ties
    logits[1::3, ::2] = -torch.inf
    temperature = torch.tensor([1.0, 0.3, 2.5])[torch.arange(num_rows) % 3]
    min_p = torch.tensor([0.0, 0.0, 0.05, 0.4])[torch.arange(num_rows) % 4]
    top_k = torch.tensor([0, 1, 20, 300, 5000])[torch.arange(num_rows) % 5]
    top_p = torch.rand(num_rows, generator=generator).clamp(min=0.01)
    top_p[::7] = 1
    threshold = truncation_threshold(logits, temperature, min_p, top_k, top_p)
    for row in range(num_rows):
        settings = (float(values[row]) for values in (temperature, min_p))
        expected = by_sorting(logits[row], *settings, int(top_k[row]), float(top_p[row]))
        drawable = (logits[row] >= threshold[row]) & (logits[row] > -torch.inf)
        assert torch.equal(drawable, expected), row


def test_broken_rows_do_not_disturb_the_others():
    logits = torch.randn(3, 100, generator=torch.Generator().manual_seed(0))
    settings = (torch.ones(3), torch.full((3,), 0.01), torch.full((3,), 30), torch.full((3,), 0.5))
    whole = truncation_threshold(logits, *settings)
    logits[0, 5], logits[2] = torch.nan, -torch.inf
    assert truncation_threshold(logits, *settings)[1] == whole[1]
