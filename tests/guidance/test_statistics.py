from __future__ import annotations

import numpy as np
import pytest

from trimtab.guidance.evaluation.variety import distinct, share_decided_later
from trimtab.guidance.statistics import estimate_by_prompt


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
