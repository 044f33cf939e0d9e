from __future__ import annotations

import pytest
import torch

from trimtab.guidance.losses.value import monte_carlo

MASK = torch.tensor([[True, True, False]])


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
