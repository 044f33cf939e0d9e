from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from trimtab.guidance.losses import ADVANTAGE_LOSSES
from trimtab.guidance.losses.preference import dpo

W, L = torch.tensor([math.log(3)], dtype=torch.float64), torch.zeros(1, dtype=torch.float64)


def random_ratios() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    chosen, rejected = torch.randn(2, 8, dtype=torch.float64, generator=generator) * 5
    return chosen, rejected


@pytest.mark.parametrize(
    ("name", "flipped", "want"),
    [("dpo", 0.0, 0.2876821), ("conservative_dpo", 0.1, 0.3975433), ("robust_dpo", 0.1, 0.1503555)],
)
def test_by_hand(name: str, flipped: float, want: float):
    result = ADVANTAGE_LOSSES[name](W, L, tau=1.0, flipped=flipped)
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
