from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from trimtab.guidance.losses.preference import kto

LN3 = math.log(3)
KINDS = torch.tensor([True, False])


def f64(*numbers: float) -> Tensor:
    return torch.tensor(numbers, dtype=torch.float64)


@pytest.mark.parametrize(
    ("mismatched", "want"),
    [((-1.0, -1.0), [0.25, 0.5]), ((0.0, 2 * LN3), [0.5, 0.25]), ((1.0, -3.0), [0.25, 0.5])],
)
def test_by_hand(mismatched: tuple[float, float], want: list[float]):
    result = kto(f64(LN3, 0.0), f64(*mismatched), KINDS, tau=1.0)
    assert result.per_example.tolist() == pytest.approx(want, abs=1e-12)


def test_metrics_by_hand():
    metrics = kto(f64(LN3, 0.0), f64(0.0, LN3), KINDS, tau=2.0).metrics
    assert metrics["kto/kl"].item() == pytest.approx(LN3 / 2)
    assert metrics["rewards/chosen"].item() == pytest.approx(2 * LN3)
    assert metrics["rewards/rejected"].item() == 0
    assert metrics["rewards/accuracies"].item() == 1


def test_the_weights_scale_their_own_kind():
    plain = kto(f64(1.0, 2.0), f64(0.0, 1.0), KINDS, tau=0.5).per_example
    weighted = kto(
        f64(1.0, 2.0), f64(0.0, 1.0), KINDS, tau=0.5, weight_desirable=2.0, weight_undesirable=3.0
    ).per_example
    torch.testing.assert_close(weighted, plain * f64(2.0, 3.0), rtol=1e-12, atol=1e-12)


def test_a_desirable_reply_is_pulled_up_an_undesirable_down_and_the_baseline_left_alone():
    log_ratio, mismatched = f64(0.3, 0.3).requires_grad_(), f64(1.0, 2.0).requires_grad_()
    kto(log_ratio, mismatched, KINDS, tau=1.0).per_example.sum().backward()
    assert log_ratio.grad is not None
    assert log_ratio.grad[0] < 0 < log_ratio.grad[1]
    assert mismatched.grad is None


def test_a_kind_that_the_batch_has_not_is_no_metric():
    metrics = kto(f64(1.0, 2.0), f64(0.0, 0.0), torch.tensor([True, True]), tau=1.0).metrics
    assert "rewards/rejected" not in metrics
    assert metrics["rewards/chosen"].item() == 1.5


def test_a_batch_of_one_is_refused():
    with pytest.raises(ValueError, match="batch of at least 2"):
        kto(f64(1.0), f64(1.0), torch.tensor([True]), tau=1.0)
