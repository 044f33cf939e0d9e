from __future__ import annotations

import math

import pytest
import torch

from trimtab.guidance.losses.reward import bradley_terry, good_bad, ranked, regression

W, L = torch.tensor([math.log(3)], dtype=torch.float64), torch.zeros(1, dtype=torch.float64)


def test_by_hand():
    result = bradley_terry(W, L)
    assert result.per_example.tolist() == pytest.approx([0.2997516], abs=1e-7)
    assert result.metrics["reward/accuracy"].item() == 1
    assert result.metrics["reward/margin"].item() == pytest.approx(math.log(3))


def test_a_margin_asks_for_a_larger_difference():
    with_margin = bradley_terry(W, L, margin=math.log(3), centring=0.0)
    assert with_margin.per_example.tolist() == pytest.approx([math.log(2)])
    per_pair = bradley_terry(W.repeat(2), L.repeat(2), margin=torch.tensor([0.0, math.log(3)]), centring=0.0)
    assert per_pair.per_example.tolist() == pytest.approx([math.log(4 / 3), math.log(2)])


def test_without_centring_only_the_difference_counts():
    shifted = bradley_terry(W + 7, L + 7, centring=0.0).per_example
    assert shifted.tolist() == pytest.approx(bradley_terry(W, L, centring=0.0).per_example.tolist())


def test_centring_pulls_the_rewards_of_a_pair_towards_opposite_numbers():
    level = torch.tensor(0.0, dtype=torch.float64, requires_grad=True)
    bradley_terry(W + level, L + level).per_example.sum().backward()
    assert level.grad is not None
    assert level.grad.item() == pytest.approx(0.01 * 2 * math.log(3) * 2)


def test_ranked_by_hand():
    scores = torch.tensor([math.log(3), 0.0, 0.0], dtype=torch.float64)
    result = ranked(scores, torch.zeros(3, dtype=torch.long), torch.tensor([1, 2, 3]))
    assert result.per_example.tolist() == pytest.approx([0.4228371], abs=1e-7)
    assert result.metrics["reward/accuracy"].item() == pytest.approx(2 / 3)
    assert result.metrics["reward/margin"].item() == pytest.approx(2 * math.log(3) / 3)


def test_a_ranking_of_two_is_bradley_terry():
    scores = torch.randn(2, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    group, rank = torch.arange(5).repeat(2), torch.tensor([3] * 5 + [8] * 5)
    want = bradley_terry(*scores, centring=0.0).per_example
    torch.testing.assert_close(
        ranked(scores.flatten(), group, rank).per_example, want, rtol=1e-12, atol=1e-12
    )


def test_a_prompt_counts_once_in_whatever_order_its_replies_come():
    """Every pair of a prompt and none across prompts: each prompt costs what it costs alone."""
    generator = torch.Generator().manual_seed(1)
    scores = torch.randn(9, dtype=torch.float64, generator=generator)
    group, rank = torch.tensor([0, 0, 0, 0, 1, 1, 2, 2, 2]), torch.tensor([2, 1, 4, 3, 1, 2, 1, 1, 2])
    order = torch.randperm(9, generator=generator)
    together = ranked(scores[order], group[order], rank[order]).per_example
    for prompt in range(3):
        own = group == prompt
        alone = ranked(scores[own], torch.zeros(int(own.sum()), dtype=torch.long), rank[own]).per_example
        torch.testing.assert_close(together[prompt], alone[0], rtol=1e-12, atol=1e-12)


def test_ties_make_no_pair():
    scores = torch.tensor([5.0, -5.0, 1.0, 0.0], requires_grad=True)
    losses = ranked(scores, torch.tensor([0, 0, 1, 1]), torch.tensor([1, 1, 1, 2])).per_example
    losses.sum().backward()
    assert losses[0] == 0 < losses[1]
    assert scores.grad is not None
    assert scores.grad[:2].tolist() == [0, 0]


def test_regression_by_hand():
    result = regression(torch.tensor([1.0, 5.0]), torch.tensor([3.0, 4.0]))
    assert result.per_example.tolist() == [2.0, 0.5]
    assert result.metrics["reward/rmse"].item() == pytest.approx(2.5**0.5)
    assert result.metrics["reward/mean"].item() == 3


def test_good_bad_by_hand():
    result = good_bad(W.repeat(2), torch.tensor([True, False]))
    assert result.per_example.tolist() == pytest.approx([math.log(4 / 3), math.log(4)], abs=1e-12)
    assert result.metrics["reward/accuracy"].item() == 0.5


def test_good_bad_is_smallest_at_the_log_odds_of_good():
    scores = torch.linspace(-6, 6, 100_001, dtype=torch.float64)
    good, bad = (good_bad(scores, torch.full_like(scores, label, dtype=torch.bool)) for label in (1, 0))
    losses = 0.8 * good.per_example + 0.2 * bad.per_example
    assert scores[losses.argmin()].item() == pytest.approx(math.log(4), abs=1e-3)
