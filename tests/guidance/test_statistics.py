"""Intervals against arithmetic worked by hand, and against how often they hold what they should."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from trimtab.guidance.evaluation.variety import distinct
from trimtab.guidance.statistics import (
    estimate_by_prompt,
    estimate_correlation,
    estimate_mean,
    estimate_ordering,
    estimate_share,
    mean_by_prompt,
    share_decided_later,
)

OWN = torch.arange(10)


def test_the_interval_covers_the_truth_about_95_times_in_100():
    rng = np.random.default_rng(0)
    prompts = [str(i // 4) for i in range(160)]
    hits = 0
    for trial in range(200):
        numbers = np.repeat(rng.normal(size=40), 4) + 0.3 * rng.normal(size=160)
        estimate = estimate_by_prompt(prompts, numbers, resamples=300, seed=trial)
        hits += estimate.low <= 0 <= estimate.high
    assert 176 <= hits <= 199


def test_replies_to_one_prompt_do_not_count_as_independent():
    values = np.random.default_rng(0).normal(size=50)
    once = estimate_by_prompt([str(i) for i in range(50)], values)
    tenfold = estimate_by_prompt([str(i) for i in range(50) for _ in range(10)], np.repeat(values, 10))
    assert tenfold.high - tenfold.low == pytest.approx(once.high - once.low)


def test_the_mean_weighs_replies_alike_and_the_seed_fixes_the_interval():
    first = estimate_by_prompt(["a", "a", "b"], [1.0, 2.0, 6.0])
    assert first.mean == 3.0
    assert first.low <= first.mean <= first.high
    assert estimate_by_prompt(["a", "a", "b"], [1.0, 2.0, 6.0]) == first


def test_an_estimate_of_nothing_is_refused():
    with pytest.raises(ValueError, match="at least one"):
        estimate_by_prompt([], [])


def test_distinct_by_hand():
    assert distinct([(1, 2, 1), (1, 2)], 2) == pytest.approx(2 / 3)
    assert distinct([(1, 2, 1), (1, 2)], 1) == pytest.approx(2 / 5)
    assert distinct([(1,)], 2) == 0


def test_continuations_that_agree_were_decided_before_and_independent_ones_after():
    rewards = np.random.default_rng(0).normal(size=(2, 20_000))
    assert share_decided_later(rewards[0].tolist(), rewards[0].tolist()) == 0
    assert share_decided_later(rewards[0].tolist(), rewards[1].tolist()) == pytest.approx(1, abs=0.03)


def test_the_share_of_a_random_walk_is_the_share_of_its_later_steps():
    rng = np.random.default_rng(0)
    start = rng.normal(size=(1, 20_000, 6)).sum(-1)
    ends = start + rng.normal(size=(2, 20_000, 14)).sum(-1)
    assert share_decided_later(*ends.tolist()) == pytest.approx(14 / 20, abs=0.02)


def test_a_share_of_no_variance_is_refused():
    with pytest.raises(ValueError, match="not all of them equal"):
        share_decided_later([1.0, 1.0], [1.0, 1.0])
    with pytest.raises(ValueError, match="two pairs"):
        share_decided_later([1.0], [2.0])


def test_the_error_of_a_mean_counts_prompts_and_not_rows():
    numbers = torch.tensor([1.0, 3, 2, 2])
    assert mean_by_prompt(numbers, torch.tensor([0, 0, 1, 1])) == (2, 0)
    mean, error = mean_by_prompt(numbers, torch.arange(4))
    assert (mean, error) == (2, pytest.approx(math.sqrt(2) / 4))
    found = estimate_mean(numbers, torch.arange(4))
    assert found.low == pytest.approx(2 - 3.1824 * math.sqrt(2) / 4 * math.sqrt(4 / 3), abs=0.02)
    many = estimate_mean(torch.tensor([1.0, 3.0]).repeat(500), torch.arange(1000))
    assert many.high == pytest.approx(2 + 1.9623 / math.sqrt(999), abs=1e-5)
    alone = estimate_mean(torch.tensor([1.0, 1.0]), torch.zeros(2, dtype=torch.long))
    assert alone.low < 0 < alone.high


def test_a_share_has_the_interval_of_wilson():
    hits = torch.tensor([1.0] * 8 + [0.0] * 2)
    found = estimate_share(hits, OWN)
    assert (found.mean, found.low, found.high) == pytest.approx((0.8, 0.4901625, 0.9433178), abs=1e-6)
    found = estimate_share(torch.ones(10), OWN)
    assert (found.mean, found.low, found.high) == pytest.approx((1, 0.7224672, 1), abs=1e-6)


def test_a_share_of_rows_that_go_together_counts_for_their_prompts():
    """Ten pairs of each of ten prompts that all go one way are no more than ten pairs."""
    hits = torch.tensor([1.0] * 8 + [0.0] * 2)
    alone = estimate_share(hits, OWN)
    together = estimate_share(hits.repeat_interleave(10), OWN.repeat_interleave(10))
    assert (together.low, together.high) == pytest.approx((alone.low, alone.high))


def test_a_correlation_is_pearsons_and_its_interval_is_over_prompts():
    x = torch.tensor([1.0, 2, 3, 4])
    assert estimate_correlation(x, 5 - 2 * x, torch.arange(4)).mean == pytest.approx(-1)
    assert estimate_correlation(x, torch.ones(4), torch.arange(4)).mean == 0
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(200, generator=generator)
    y = x + torch.randn(200, generator=generator)
    apart = estimate_correlation(x, y, torch.arange(200))
    assert apart.mean == pytest.approx(torch.corrcoef(torch.stack([x, y]))[0, 1].item(), abs=1e-5)
    fisher = 1.96 / math.sqrt(197) * (1 - apart.mean**2)
    assert apart.high - apart.low == pytest.approx(2 * fisher, rel=0.2)
    repeated = estimate_correlation(x.repeat(4), y.repeat(4), torch.arange(200).repeat(4))
    assert (repeated.low, repeated.high) == pytest.approx((apart.low, apart.high), abs=1e-6)


def test_an_ordering_is_the_share_of_pairs_in_which_the_good_one_lies_above():
    good, bad = torch.tensor([3.0, 1.0]), torch.tensor([2.0, 1.0, 0.0])
    assert estimate_ordering(good, bad, torch.tensor([0, 1]), torch.tensor([0, 1, 2])).mean == pytest.approx(
        4.5 / 6
    )


@pytest.mark.parametrize("seed", range(3))
def test_intervals_of_noise_hold_chance_about_nineteen_times_of_twenty(seed: int):
    generator = torch.Generator().manual_seed(seed)
    held = {"share": 0, "mean": 0, "ordering": 0}
    for _ in range(100):
        noise = torch.randn(60, generator=generator)
        share, mean = (
            estimate_share((noise > 0).double(), torch.arange(60)),
            estimate_mean(noise, torch.arange(60)),
        )
        order = estimate_ordering(noise[:30], noise[30:], torch.arange(30), torch.arange(30, 60))
        held["share"] += share.low <= 0.5 <= share.high
        held["mean"] += mean.low <= 0 <= mean.high
        held["ordering"] += order.low <= 0.5 <= order.high
    assert all(count >= 88 for count in held.values()), held
