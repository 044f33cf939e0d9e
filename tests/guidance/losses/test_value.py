from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from trimtab.guidance.losses.returns import reward_to_go
from trimtab.guidance.losses.value import (
    bin_centres,
    distributional,
    expected,
    monte_carlo,
    position_weighted,
    soft_value,
    td_lambda,
)

MASK = torch.tensor([[True, True, False]])


def f64(*rows: object) -> Tensor:
    return torch.tensor(rows, dtype=torch.float64)


def close(a: Tensor, b: Tensor, atol: float = 1e-12) -> None:
    torch.testing.assert_close(a, b, rtol=1e-12, atol=atol)


def random_rollouts() -> tuple[Tensor, Tensor, Tensor]:
    """Values and returns (or rewards) of replies of 5, 1 and 3 tokens, and their mask."""
    values, returns = torch.randn(2, 3, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    return values, returns, torch.arange(5) < torch.tensor([[5], [1], [3]])


def test_by_hand():
    result = monte_carlo(torch.tensor([[1.0, 2.0, 9.0]]), torch.tensor([3.0]), MASK)
    assert result.per_example.tolist() == [2.5]
    assert result.metrics["value/rmse"].item() == pytest.approx((5 / 2) ** 0.5)
    assert result.metrics["value/mean"].item() == 1.5


@pytest.mark.parametrize("padding", [0.0, 1e30, float("nan")])
def test_what_stands_in_the_padding_changes_neither_loss_nor_gradient(padding: float):
    values = torch.tensor([[1.0, 2.0, padding]], requires_grad=True)
    monte_carlo(values, torch.tensor([3.0]), MASK).per_example.sum().backward()
    assert values.grad is not None
    assert values.grad.tolist() == [[-2.0, -1.0, 0.0]]


def test_a_target_per_position_by_hand():
    result = monte_carlo(f64([1, 2, 9]), f64([3, 0, 9]), MASK)
    assert result.per_example.tolist() == [0.5 * (4 + 4)]


def test_one_return_for_the_reply_is_that_return_at_every_position():
    values, returns, mask = random_rollouts()
    for loss in (monte_carlo, position_weighted):
        whole = loss(values, returns[:, 0], mask).per_example
        assert torch.equal(whole, loss(values, returns[:, :1].expand(3, 5), mask).per_example)


def test_position_weighted_by_hand():
    result = position_weighted(f64([1, 2, 9]), f64([3, 3, 9]), MASK)
    assert result.per_example.tolist() == pytest.approx([1.0])


def test_a_long_reply_weighs_as_much_as_a_short_one():
    """The weights 2t/(T(T+1)) sum to 1 for every length, and grow evenly."""
    mask = torch.arange(5) < torch.tensor([[5], [1], [3]])
    values = torch.zeros(3, 5, dtype=torch.float64, requires_grad=True)
    losses = position_weighted(values, -torch.ones(3, dtype=torch.float64), mask).per_example
    losses.sum().backward()
    assert losses.tolist() == pytest.approx([0.5] * 3, abs=1e-12)
    assert values.grad is not None
    assert values.grad[2].tolist() == pytest.approx([1 / 6, 2 / 6, 3 / 6, 0, 0])


def test_td_lambda_by_hand():
    values = f64([1, 2, 9]).requires_grad_()
    result = td_lambda(values, f64([0, 3, 9]), MASK, lam=0.5)
    assert result.per_example.tolist() == [1.625]
    result.per_example.sum().backward()
    assert values.grad is not None
    assert values.grad.tolist() == [[-1.5, -1, 0]]  # through the forecast alone, not the target


def test_td_of_lambda_1_is_monte_carlo_on_what_is_still_to_come():
    values, rewards, mask = random_rollouts()
    want = monte_carlo(values, reward_to_go(rewards, mask, 0.9), mask).per_example
    close(td_lambda(values, rewards, mask, discount=0.9, lam=1.0).per_example, want)


def test_distributional_by_hand():
    logits = f64([[0.25, 0.5, 0.25], [9, 9, 9]]).log()
    result = distributional(logits, f64([1.25, 7]), MASK[:, 1:], low=0.0, high=2.0)
    assert result.per_example.tolist() == pytest.approx([0.8664340], abs=1e-7)
    assert result.metrics["value/rmse"].item() == pytest.approx(0.25)
    assert result.metrics["value/mean"].item() == pytest.approx(1)
    assert result.metrics["value/clipped"].item() == 0


@pytest.mark.parametrize(
    ("target", "reached"), [(0.37, 0.37), (-1.0, -1.0), (2.0, 2.0), (-9.0, -1.0), (9.0, 2.0)]
)
def test_the_bins_learn_the_mean_of_the_return_within_their_range(target: float, reached: float):
    """The cross-entropy's gradient is p − two-hot: the target's own mean is the return, or the nearer end."""
    logits = torch.zeros(1, 1, 7, dtype=torch.float64, requires_grad=True)
    result = distributional(logits, f64([target]), torch.tensor([[True]]), low=-1.0, high=2.0)
    result.per_example.sum().backward()
    assert logits.grad is not None
    two_hot = 1 / 7 - logits.grad[0, 0]
    assert (two_hot @ bin_centres(7, -1, 2)).item() == pytest.approx(reached, abs=1e-12)
    assert two_hot.min() > -1e-12
    assert (two_hot > 1e-12).sum() <= 2
    assert result.metrics["value/clipped"].item() == (target != reached)


def test_bins_are_centred_evenly_with_both_ends():
    assert bin_centres(5, -1.0, 1.0).tolist() == [-1, -0.5, 0, 0.5, 1]


@pytest.mark.parametrize(("num_bins", "low", "high"), [(1, 0.0, 1.0), (5, 1.0, 1.0), (5, 2.0, 1.0)])
def test_bins_that_span_nothing_are_refused(num_bins: int, low: float, high: float):
    with pytest.raises(ValueError, match="bins"):
        bin_centres(num_bins, low, high)


def test_the_soft_value_by_hand():
    logits, centres = f64(0.25, 0.75).log(), f64(0, math.log(3))
    assert soft_value(logits, centres, 1.0).item() == pytest.approx(0.9162907, abs=1e-7)
    assert expected(logits, centres).item() == pytest.approx(0.75 * math.log(3))


def test_the_soft_value_goes_from_the_mean_to_the_largest_return():
    generator = torch.Generator().manual_seed(0)
    logits, centres = torch.randn(4, 9, dtype=torch.float64, generator=generator), bin_centres(9, -2, 3)
    close(soft_value(logits, centres, 1e8), expected(logits, centres), atol=1e-6)
    close(soft_value(logits, centres, 1e-8), torch.full((4,), 3.0, dtype=torch.float64), atol=1e-6)
    along = torch.stack([soft_value(logits, centres, 2.0**power) for power in range(-6, 7)])
    assert (along.diff(dim=0) < 0).all()


def test_the_soft_value_is_what_the_best_tilt_earns_less_its_kl():
    """max_π E_π[r] − τ KL(π‖π₀) = τ log E_{π₀} e^{r/τ}, at π ∝ π₀ e^{r/τ}."""
    logits, rewards, tau = f64(0.3, -1, 2), f64(1, 5, -2), 0.7
    best = (logits + rewards / tau).log_softmax(-1)
    kl = (best.exp() * (best - logits.log_softmax(-1))).sum()
    close(soft_value(logits, rewards, tau), (best.exp() * rewards).sum() - tau * kl)
