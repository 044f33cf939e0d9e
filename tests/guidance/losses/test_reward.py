from __future__ import annotations

import math

import pytest
import torch

from trimtab.guidance.losses.reward import bradley_terry

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
