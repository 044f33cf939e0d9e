"""Intervals against arithmetic worked by hand, and against how often they hold what they should."""

from __future__ import annotations

import math

import pytest
import torch

from trimtab.guidance.intervals import mean_by_prompt, of_correlation, of_mean, of_ordering, of_share

OWN = torch.arange(10)


def test_the_error_of_a_mean_counts_prompts_and_not_rows():
    numbers = torch.tensor([1.0, 3, 2, 2])
    assert mean_by_prompt(numbers, torch.tensor([0, 0, 1, 1])) == (2, 0)
    mean, error = mean_by_prompt(numbers, torch.arange(4))
    assert (mean, error) == (2, pytest.approx(math.sqrt(2) / 4))
    found = of_mean(numbers, torch.arange(4))
    assert found.low == pytest.approx(2 - 3.1824 * math.sqrt(2) / 4 * math.sqrt(4 / 3), abs=0.02)
    many = of_mean(torch.tensor([1.0, 3.0]).repeat(500), torch.arange(1000))
    assert many.high == pytest.approx(2 + 1.9623 / math.sqrt(999), abs=1e-5)
    alone = of_mean(torch.tensor([1.0, 1.0]), torch.zeros(2, dtype=torch.long))
    assert alone.low < 0 < alone.high


def test_a_share_has_the_interval_of_wilson():
    hits = torch.tensor([1.0] * 8 + [0.0] * 2)
    found = of_share(hits, OWN)
    assert (found.figure, found.low, found.high) == pytest.approx((0.8, 0.4901625, 0.9433178), abs=1e-6)
    found = of_share(torch.ones(10), OWN)
    assert (found.figure, found.low, found.high) == pytest.approx((1, 0.7224672, 1), abs=1e-6)


def test_a_share_of_rows_that_go_together_counts_for_their_prompts():
    """Ten pairs of each of ten prompts that all go one way are no more than ten pairs."""
    hits = torch.tensor([1.0] * 8 + [0.0] * 2)
    alone, together = of_share(hits, OWN), of_share(hits.repeat_interleave(10), OWN.repeat_interleave(10))
    assert (together.low, together.high) == pytest.approx((alone.low, alone.high))


def test_a_correlation_is_pearsons_and_its_interval_is_over_prompts():
    x = torch.tensor([1.0, 2, 3, 4])
    assert of_correlation(x, 5 - 2 * x, torch.arange(4)).figure == pytest.approx(-1)
    assert of_correlation(x, torch.ones(4), torch.arange(4)).figure == 0
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(200, generator=generator)
    y = x + torch.randn(200, generator=generator)
    apart = of_correlation(x, y, torch.arange(200))
    assert apart.figure == pytest.approx(torch.corrcoef(torch.stack([x, y]))[0, 1].item(), abs=1e-5)
    fisher = 1.96 / math.sqrt(197) * (1 - apart.figure**2)
    assert apart.high - apart.low == pytest.approx(2 * fisher, rel=0.2)
    repeated = of_correlation(x.repeat(4), y.repeat(4), torch.arange(200).repeat(4))
    assert (repeated.low, repeated.high) == pytest.approx((apart.low, apart.high), abs=1e-6)


def test_an_ordering_is_the_share_of_pairs_in_which_the_good_one_lies_above():
    good, bad = torch.tensor([3.0, 1.0]), torch.tensor([2.0, 1.0, 0.0])
    assert of_ordering(good, bad, torch.tensor([0, 1]), torch.tensor([0, 1, 2])).figure == pytest.approx(
        4.5 / 6
    )


@pytest.mark.parametrize("seed", range(3))
def test_intervals_of_noise_hold_chance_about_nineteen_times_of_twenty(seed: int):
    generator = torch.Generator().manual_seed(seed)
    held = {"share": 0, "mean": 0, "ordering": 0}
    for _ in range(100):
        noise = torch.randn(60, generator=generator)
        share, mean = of_share((noise > 0).double(), torch.arange(60)), of_mean(noise, torch.arange(60))
        order = of_ordering(noise[:30], noise[30:], torch.arange(30), torch.arange(30, 60))
        held["share"] += share.low <= 0.5 <= share.high
        held["mean"] += mean.low <= 0 <= mean.high
        held["ordering"] += order.low <= 0.5 <= order.high
    assert all(count >= 88 for count in held.values()), held
