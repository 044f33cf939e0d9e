from __future__ import annotations

import pytest
import torch
from torch import Tensor

from trimtab.guidance.losses.advantage import cd_q, distil, q_monte_carlo
from trimtab.guidance.losses.returns import reward_to_go

MASK = torch.tensor([[True, True, False]])


def f64(*rows: object) -> Tensor:
    return torch.tensor(rows, dtype=torch.float64)


def close(a: Tensor, b: Tensor) -> None:
    torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)


def test_q_monte_carlo_by_hand():
    values, advantages = f64([1, 1, 9]), f64([1, -1, 9])
    result = q_monte_carlo(values + advantages, f64([3, 1, 7]), MASK)
    assert result.per_example.tolist() == [1]
    assert result.metrics["q/rmse"].item() == 1
    assert result.metrics["q/mean"].item() == 1
    assert q_monte_carlo(f64([2, 0, 9]), f64(3).flatten(), MASK).per_example.tolist() == [5]


def test_the_best_advantage_of_a_token_is_its_return_above_the_value():
    """After one state tokens earn (1, 2, 6), π₀ = (½, ¼, ¼). Over all tokens the gradient of the convex
    loss vanishes at V = 2½, Ā = (−1½, −½, 3½), not where a part of V is moved into A (centred)."""
    base, earned = f64(0.5, 0.25, 0.25), f64(1, 2, 6)[:, None]
    value, advantage = f64(2.5).requires_grad_(), f64(-1.5, -0.5, 3.5).requires_grad_()
    q = (value + advantage - base @ advantage)[:, None]
    (base @ q_monte_carlo(q, earned, torch.ones(3, 1, dtype=torch.bool)).per_example).backward()
    assert value.grad is not None and advantage.grad is not None
    close(torch.cat([value.grad, advantage.grad]), f64(0, 0, 0, 0))
    shifted = (value - 1 + advantage + 1 - base @ (advantage + 1))[:, None]
    (base @ q_monte_carlo(shifted, earned, torch.ones(3, 1, dtype=torch.bool)).per_example).backward()
    assert value.grad.item() == pytest.approx(-1)


def test_cd_q_by_hand():
    result = cd_q(f64([1, 2, 9]), f64([0.5, 0, 9]), f64([0, 3, 9]), MASK)
    assert result.per_example.tolist() == [0.625]


def test_no_gradient_goes_through_the_target_of_cd_q():
    q, after = f64([1, 2, 9]).requires_grad_(), f64([0.5, 0, 9]).requires_grad_()
    cd_q(q, after, f64([0, 3, 9]), MASK).per_example.sum().backward()
    assert q.grad is not None
    assert q.grad.tolist() == [[0.5, -1, 0]]
    assert after.grad is None


def test_cd_q_with_values_that_know_the_future_asks_for_the_return():
    rewards = torch.randn(1, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    mask = torch.ones(1, 4, dtype=torch.bool)
    to_go = reward_to_go(rewards, mask)
    after = torch.cat([to_go[:, 1:], torch.zeros(1, 1)], 1)
    close(
        cd_q(torch.zeros_like(rewards), after, rewards, mask).per_example,
        q_monte_carlo(torch.zeros_like(rewards), to_go, mask).per_example,
    )


def test_distil_by_hand():
    result = distil(f64([2, 0]), f64([3, 1]), f64([0.5, 0.5]))
    assert result.per_example.tolist() == [0.5]
    assert result.metrics["distil/rmse"].item() == 1
    assert result.metrics["distil/target_rms"].item() == 1


def test_what_a_teacher_adds_to_all_candidates_of_a_state_teaches_nothing():
    advantage, target, weight = torch.rand(3, 4, 6, dtype=torch.float64, generator=torch.manual_seed(0))
    close(
        distil(advantage, target + torch.arange(4)[:, None], weight).per_example,
        distil(advantage, target, weight).per_example,
    )


def test_the_centred_scores_cost_nothing_when_all_tokens_are_candidates():
    target = torch.randn(4, 6, dtype=torch.float64, generator=torch.manual_seed(0))
    base = torch.randn(4, 6, dtype=torch.float64, generator=torch.manual_seed(1)).softmax(-1)
    advantage = target - (base * target).sum(1, keepdim=True)
    close(distil(advantage, target, base).per_example, torch.zeros(4, dtype=torch.float64))


@pytest.mark.parametrize("score", [0.0, float("nan"), float("-inf")])
def test_a_candidate_of_no_weight_counts_for_nothing_whatever_its_score(score: float):
    advantage = f64([2, 0, score]).requires_grad_()
    result = distil(advantage, f64([3, 1, score]), f64([0.5, 0.5, 0]))
    result.per_example.sum().backward()
    assert result.per_example.tolist() == [0.5]
    assert advantage.grad is not None
    assert advantage.grad.tolist() == [[0.5, 0.5, 0]]
