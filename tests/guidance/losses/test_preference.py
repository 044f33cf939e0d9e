from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from trimtab.guidance.losses.preference import PAIRS, dpo, ipo, simpo

W, L = torch.tensor([math.log(3)], dtype=torch.float64), torch.zeros(1, dtype=torch.float64)


def f64(*numbers: float) -> Tensor:
    return torch.tensor(numbers, dtype=torch.float64)


def random_ratios() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    chosen, rejected = torch.randn(2, 8, dtype=torch.float64, generator=generator) * 5
    return chosen, rejected


@pytest.mark.parametrize(
    ("name", "flipped", "want"),
    [("dpo", 0.0, 0.2876821), ("conservative_dpo", 0.1, 0.3975433), ("robust_dpo", 0.1, 0.1503555)],
)
def test_by_hand(name: str, flipped: float, want: float):
    result = PAIRS[name].function(W, L, tau=1.0, flipped=flipped)
    assert result.per_example.tolist() == pytest.approx([want], abs=1e-7)
    assert result.metrics["rewards/margins"].item() == pytest.approx(math.log(3))
    assert result.metrics["rewards/accuracies"].item() == 1


def test_the_robust_loss_is_unbiased_under_flipped_labels():
    """(1−ε) robust(d) + ε robust(−d) is the plain loss of d."""
    chosen, rejected = random_ratios()
    clean = dpo(chosen, rejected).per_example
    right = dpo(chosen, rejected, flipped=0.2, noise="robust").per_example
    swapped = dpo(rejected, chosen, flipped=0.2, noise="robust").per_example
    torch.testing.assert_close(0.8 * right + 0.2 * swapped, clean, rtol=1e-12, atol=1e-12)


def test_the_conservative_loss_is_smallest_at_the_odds_of_a_right_label():
    margin = torch.linspace(-6, 6, 100_001, dtype=torch.float64)
    losses = dpo(margin, torch.zeros_like(margin), tau=1.0, flipped=0.2, noise="conservative").per_example
    assert margin[losses.argmin()].item() == pytest.approx(math.log(0.8 / 0.2), abs=1e-3)


def test_tau_scales_the_margin():
    chosen, rejected = random_ratios()
    torch.testing.assert_close(
        dpo(chosen, rejected, tau=0.2).per_example, dpo(2 * chosen, 2 * rejected, tau=0.1).per_example
    )


@pytest.mark.parametrize(("flipped", "noise"), [(0.1, "none"), (0.0, "robust"), (0.5, "conservative")])
def test_a_share_of_flipped_labels_that_would_be_ignored_is_refused(flipped: float, noise: str):
    with pytest.raises(ValueError, match="flipped"):
        dpo(W, L, flipped=flipped, noise=noise)  # type: ignore[arg-type]


def test_ipo_by_hand():
    result = ipo(f64(2.0), f64(-1.0), f64(4), f64(2), tau=0.25)
    assert result.per_example.tolist() == [1.0]
    assert result.metrics["rewards/chosen"].item() == 0.25 * 0.5
    assert result.metrics["rewards/margins"].item() == 0.25


def test_ipo_stops_where_the_margin_reaches_its_goal():
    """At a margin of 1/(2τ) per token the loss is 0, and a larger margin is pulled back."""
    chosen = f64(8.0, 12.0).requires_grad_()
    losses = ipo(chosen, f64(0.0, 0.0), f64(4, 4), f64(7, 7), tau=0.25).per_example
    losses.sum().backward()
    assert losses.tolist() == [0.0, 1.0]
    assert chosen.grad is not None
    assert chosen.grad.tolist() == [0.0, 0.5]


def test_simpo_by_hand():
    ln3 = math.log(3)
    result = simpo(f64(2 * ln3), f64(1.0), f64(-2.0), f64(-1.0), f64(2), f64(3), tau=2.0, gamma=2 * ln3 - 2)
    assert result.per_example.tolist() == pytest.approx([math.log(2)], abs=1e-12)
    assert result.metrics["rewards/margins"].item() == pytest.approx(2 * ln3 - 2)


def test_simpo_counts_the_base_and_asks_for_gamma_more():
    """Only base + R matters, and γ shifts the margin: −logσ(m − γ)."""
    chosen, rejected = random_ratios()
    base, ones = torch.linspace(-9, -1, 8, dtype=torch.float64), torch.ones(8, dtype=torch.float64)
    moved = simpo(chosen - base, rejected, base, -ones, 3 * ones, 2 * ones, tau=2.0, gamma=0.5).per_example
    whole = simpo(chosen, rejected - ones, 0 * ones, 0 * ones, 3 * ones, 2 * ones, tau=2.0, gamma=0.5)
    torch.testing.assert_close(moved, whole.per_example, rtol=1e-12, atol=1e-12)
    margin = 2 * (chosen / 3 - (rejected - 1) / 2)
    want = dpo(margin - 0.5, torch.zeros_like(margin), tau=1.0).per_example
    torch.testing.assert_close(moved, want, rtol=1e-12, atol=1e-12)


def test_a_reply_said_twice_over_costs_ipo_and_simpo_the_same():
    """Averages per token do not reward length: doubling a reply's sums and its length changes nothing."""
    once, twice = f64(3.0), f64(6.0)
    assert torch.equal(
        ipo(once, once, f64(4), f64(5), tau=0.1).per_example,
        ipo(twice, once, f64(8), f64(5), tau=0.1).per_example,
    )
    assert torch.equal(
        simpo(once, once, -once, -once, f64(4), f64(5), tau=2.0, gamma=0.3).per_example,
        simpo(twice, once, -twice, -once, f64(8), f64(5), tau=2.0, gamma=0.3).per_example,
    )
