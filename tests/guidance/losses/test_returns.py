from __future__ import annotations

import pytest
import torch
from torch import Tensor

from trimtab.guidance.losses.returns import (
    gae,
    group_baseline,
    group_normalise,
    reward_to_go,
    whiten,
)

NAN = float("nan")


def f64(*rows: object) -> Tensor:
    return torch.tensor(rows, dtype=torch.float64)


def close(a: Tensor, b: Tensor) -> None:
    torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)


def rollouts() -> tuple[Tensor, Tensor, Tensor]:
    """Rewards and values of replies of 5, 1 and 3 tokens, and their mask; the padding holds NaN."""
    rewards, values = torch.randn(2, 3, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    mask = torch.arange(5) < torch.tensor([[5], [1], [3]])
    return rewards.where(mask, NAN), values.where(mask, NAN), mask


def test_reward_to_go_by_hand():
    mask = torch.tensor([[True, True, True, False]])
    assert reward_to_go(f64([1, 0, 4, NAN]), mask, 0.5).tolist() == [[2, 2, 4, 0]]
    assert reward_to_go(f64([1, 0, 4, NAN]), mask, 0.0).tolist() == [[1, 0, 4, 0]]
    assert reward_to_go(f64([1, 0, 4, NAN]), mask).tolist() == [[5, 4, 4, 0]]


def test_gae_by_hand():
    mask = torch.tensor([[True, True, False]])
    advantages, returns = gae(f64([0, 3, NAN]), f64([1, 2, NAN]), mask, gamma=1.0, lam=0.5)
    assert advantages.tolist() == [[1.5, 1, 0]]
    assert returns.tolist() == [[2.5, 3, 0]]


@pytest.mark.parametrize("gamma", [1.0, 0.9])
def test_gae_goes_from_one_step_to_the_whole_return(gamma: float):
    """λ = 1: Â = G − V. λ = 0: Â = r + γV(s_{t+1}) − V(s_t). The value after the last token is 0."""
    rewards, values, mask = rollouts()
    kept = values.where(mask, 0)
    advantages, returns = gae(rewards, values, mask, gamma=gamma, lam=1.0)
    close(returns, reward_to_go(rewards, mask, gamma))
    close(advantages, returns - kept)
    after = torch.cat([kept[:, 1:], torch.zeros(3, 1)], 1)
    close(
        gae(rewards, values, mask, gamma=gamma, lam=0.0)[0],
        rewards.where(mask, 0) + gamma * after - kept,
    )


def test_a_value_that_already_knows_the_return_leaves_no_advantage():
    rewards, _, mask = rollouts()
    values = reward_to_go(rewards, mask, 0.9)
    close(gae(rewards, values, mask, gamma=0.9, lam=0.7)[0], torch.zeros_like(values))


def test_targets_carry_no_gradient():
    rewards, values, mask = rollouts()
    advantages, returns = gae(rewards, values.requires_grad_(), mask, gamma=1.0, lam=0.9)
    assert not advantages.requires_grad
    assert not returns.requires_grad
    assert not whiten(values, mask).requires_grad


def test_whitened_positions_have_mean_0_and_variance_1():
    assert whiten(f64([1, 3, NAN]), torch.tensor([[True, True, False]])).tolist() == [
        pytest.approx([-1, 1, 0], abs=1e-8)
    ]
    values, mask = rollouts()[1:]
    white = whiten(7 * values + 100, mask)
    assert white[mask].mean().item() == pytest.approx(0, abs=1e-12)
    assert white[mask].var(correction=0).item() == pytest.approx(1, abs=1e-8)
    assert (white[~mask] == 0).all()
    assert (whiten(torch.full((2, 3), 0.1), torch.ones(2, 3, dtype=torch.bool)).abs() < 1e-3).all()


def test_the_baseline_of_a_group_leaves_the_reply_itself_out():
    rewards, group = f64(1, 5, 2, 6, 9).flatten(), torch.tensor([1, 0, 1, 1, 0])
    assert group_baseline(rewards, group).tolist() == [4, 9, 3.5, 1.5, 5]
    changed = rewards + f64(100, 0, 0, 0, 0).flatten()
    assert group_baseline(changed, group)[0] == group_baseline(rewards, group)[0]


def test_of_two_replies_each_is_judged_by_the_difference():
    rewards, group = f64(1, 4).flatten(), torch.tensor([0, 0])
    assert (rewards - group_baseline(rewards, group)).tolist() == [-3, 3]


def test_leaving_one_out_stretches_the_distance_to_the_mean():
    """r_i − mean_{j≠i} r_j = n/(n−1) (r_i − mean r)."""
    rewards = torch.randn(7, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    group = torch.zeros(7, dtype=torch.long)
    close(rewards - group_baseline(rewards, group), 7 / 6 * (rewards - rewards.mean()))


def test_normalised_rewards_by_hand():
    rewards, group = f64(0, 10, 2, 30, 4).flatten(), torch.tensor([0, 1, 0, 1, 0])
    got = group_normalise(rewards, group).tolist()
    assert got[::2] == pytest.approx([-2 / 2.0001, 0, 2 / 2.0001], abs=1e-12)
    assert got[1] == -got[3]
    assert group_normalise(torch.ones(3), torch.zeros(3, dtype=torch.long)).tolist() == [0, 0, 0]


@pytest.mark.parametrize("compare", [group_baseline, group_normalise])
def test_a_prompt_with_one_reply_has_nothing_to_compare_it_with(compare):
    with pytest.raises(ValueError, match="one reply"):
        compare(torch.zeros(3), torch.tensor([0, 0, 1]))
