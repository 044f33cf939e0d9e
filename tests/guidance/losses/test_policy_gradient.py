from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from trimtab.guidance.losses.policy_gradient import grpo, ppo, reinforce
from trimtab.guidance.losses.returns import group_baseline

PAIR = torch.tensor([[True, True]])
UNEVEN = torch.arange(5) < torch.tensor([[5], [1], [3]])


def f64(*rows: object) -> Tensor:
    return torch.tensor(rows, dtype=torch.float64)


def close(a: Tensor, b: Tensor) -> None:
    torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)


def random(seed: int) -> Tensor:
    return torch.randn(3, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def test_the_clipped_policy_term_by_hand():
    result = ppo(f64([1.5, 0.5]).log(), f64([1, 1]), PAIR)
    assert result.per_example.tolist() == pytest.approx([-0.85], abs=1e-12)
    assert result.metrics["policy/clip_fraction"].item() == 0.5
    assert result.metrics["policy/ratio"].item() == pytest.approx(1)
    want = (1.5 - 1 - math.log(1.5) + 0.5 - 1 - math.log(0.5)) / 2
    assert result.metrics["policy/approx_kl"].item() == pytest.approx(want)


def test_a_negative_advantage_is_clipped_on_the_other_side():
    result = ppo(f64([1.5, 0.5]).log(), f64([-1, -1]), PAIR)
    assert result.per_example.tolist() == pytest.approx([(1.5 + 0.8) / 2], abs=1e-12)


def test_a_token_that_has_gone_far_enough_the_right_way_gets_no_gradient():
    """Too likely already where A > 0, too unlikely where A < 0; the wrong way it is always pulled back."""
    log_ratio = f64([1.5, 1.5], [0.5, 0.5]).log().requires_grad_()
    ppo(log_ratio, f64([1, -1], [1, -1]), PAIR.repeat(2, 1)).per_example.sum().backward()
    assert log_ratio.grad is not None
    assert (log_ratio.grad != 0).tolist() == [[False, True], [True, False]]


def test_the_value_and_entropy_terms_by_hand():
    zero, mask = f64([0.0]), torch.tensor([[True]])
    with_value = ppo(zero, zero, mask, values=f64([1]), old_values=f64([0]), returns=f64([1]))
    assert with_value.per_example.tolist() == pytest.approx([0.032], abs=1e-12)
    assert with_value.metrics["value/loss"].item() == pytest.approx(0.32)
    with_entropy = ppo(zero, zero, mask, entropy=f64([2.0]), entropy_weight=0.01)
    assert with_entropy.per_example.tolist() == pytest.approx([-0.02], abs=1e-12)
    assert with_entropy.metrics["policy/entropy"].item() == 2


def test_a_value_is_held_near_the_old_one_from_both_sides():
    """v = −1, v_old = 0, G = −1: clip(v) = −0.2: ½ max(0, 0.64), as for the opposite signs."""
    zero, mask = f64([0.0]), torch.tensor([[True]])
    result = ppo(zero, zero, mask, values=f64([-1]), old_values=f64([0]), returns=f64([-1]), value_weight=1.0)
    assert result.per_example.tolist() == pytest.approx([0.32], abs=1e-12)


def test_where_the_policy_has_not_moved_nothing_is_clipped():
    metrics = ppo(0 * random(0), random(1), UNEVEN).metrics
    assert metrics["policy/clip_fraction"].item() == metrics["policy/approx_kl"].item() == 0
    assert metrics["policy/ratio"].item() == 1
    assert ppo(f64([1.5, 1.1]).log(), f64([1, 1]), PAIR).metrics["policy/clip_fraction"].item() == 0.5


@pytest.mark.parametrize(
    "given",
    [
        {"values": UNEVEN},
        {"values": UNEVEN, "returns": UNEVEN},
        {"old_values": UNEVEN},
        {"entropy_weight": 0.1},
    ],
)
def test_a_term_of_which_something_is_missing_is_refused(given):
    with pytest.raises(ValueError, match="need"):
        ppo(random(0), random(1), UNEVEN, **given)


def test_at_ratio_1_the_gradient_is_that_of_reinforce():
    """Up to 1/tokens: PPO is a mean over tokens, REINFORCE a sum over each reply."""
    advantages = random(1)
    logp, start = random(0).requires_grad_(), random(0)
    ppo(logp - start, advantages, UNEVEN).per_example.mean().backward()
    ppo_gradient, logp.grad = logp.grad, None
    reinforce(logp, advantages, UNEVEN).per_example.sum().backward()
    assert ppo_gradient is not None and logp.grad is not None
    close(ppo_gradient * UNEVEN.sum(), logp.grad)
    close(logp.grad, -advantages.where(UNEVEN, 0))


def test_every_token_of_the_batch_counts_alike():
    """The mean of per_example is the mean over tokens, whatever the replies' lengths."""
    log_ratio, advantages, old = random(0) / 9, random(1), random(2)
    per_token = torch.maximum(-advantages * log_ratio.exp(), -advantages * log_ratio.exp().clamp(0.8, 1.2))
    close(ppo(log_ratio, advantages, UNEVEN).per_example.mean(), per_token[UNEVEN].mean())
    one = advantages[:, 0]
    per_token = torch.maximum(
        -one[:, None] * log_ratio.exp(), -one[:, None] * log_ratio.exp().clamp(0.8, 1.2)
    ) + 0.3 * (old.exp() - old - 1)
    close(grpo(log_ratio, one, old, UNEVEN, tau=0.3).per_example.mean(), per_token[UNEVEN].mean())


def test_grpo_by_hand():
    one = torch.tensor([[True]])
    result = grpo(f64([0.0]), f64(2).flatten(), f64([math.log(2)]), one, tau=1.0)
    assert result.per_example.tolist() == pytest.approx([-1.6931472], abs=1e-7)
    assert result.metrics["policy/kl"].item() == pytest.approx(1 - math.log(2))


def test_the_kl_term_pulls_back_to_the_policy_and_rests_there():
    x = f64([-0.5, 0.0, 0.5]).requires_grad_()
    mask = torch.ones(1, 3, dtype=torch.bool)
    result = grpo(torch.zeros_like(x), torch.zeros(1, dtype=torch.float64), x, mask, tau=2.0)
    result.per_example.mean().backward()
    assert x.grad is not None
    assert x.grad[0, 0] < 0 == x.grad[0, 1] < x.grad[0, 2]


def test_reinforce_by_hand():
    logp = f64([-1, -2])
    assert reinforce(logp, f64(3).flatten(), PAIR).per_example.tolist() == [9]
    result = reinforce(logp, f64([1, -1]), PAIR)
    assert result.per_example.tolist() == [-1]
    assert result.metrics["policy/logp"].item() == -1.5
    assert result.metrics["policy/advantage"].item() == 0


def test_no_gradient_goes_through_the_advantages():
    advantages = random(1).requires_grad_()
    leaf = random(0).requires_grad_()
    for result in (reinforce(leaf, advantages, UNEVEN), ppo(leaf, advantages, UNEVEN)):
        result.per_example.sum().backward()
    assert advantages.grad is None


def test_rloo_is_unbiased():
    """Over all pairs of replies, by their odds, the gradient is exactly that of the expected reward."""
    rewards = f64(1, 5, -2)
    logits = f64(0.3, -1, 0.5).requires_grad_()
    (logits.softmax(0) @ rewards).backward()
    want, logits.grad = logits.grad, None
    odds, group = logits.detach().softmax(0), torch.tensor([0, 0])
    for a in range(3):
        for b in range(3):
            pair = torch.tensor([a, b])
            advantages = rewards[pair] - group_baseline(rewards[pair], group)
            logp = logits.log_softmax(0)[pair][:, None]
            losses = reinforce(logp, advantages, torch.ones(2, 1, dtype=torch.bool)).per_example
            (odds[a] * odds[b] * losses.mean()).backward()
    assert want is not None and logits.grad is not None
    close(-logits.grad, want)
