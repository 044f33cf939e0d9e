from __future__ import annotations

import math

import pytest
import torch

from trimtab.guidance.losses.common import log_ratio, sum_by_reply

N, V = 7, 13


@pytest.fixture
def logits() -> torch.Tensor:
    return torch.randn(N, V, dtype=torch.float64, generator=torch.Generator().manual_seed(0)) * 3


@pytest.fixture
def advantage() -> torch.Tensor:
    return torch.randn(N, V, dtype=torch.float64, generator=torch.Generator().manual_seed(1)) * 2


TOKENS = torch.arange(N) % V


def close(a: torch.Tensor, b: torch.Tensor) -> None:
    torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)


def test_by_hand():
    rho, base = log_ratio(torch.zeros(1, 2), torch.tensor([[math.log(3), 0.0]]), torch.tensor([0]))
    assert rho.item() == pytest.approx(math.log(1.5), abs=1e-6)
    assert base.item() == pytest.approx(math.log(0.5), abs=1e-6)
    assert sum_by_reply(torch.tensor([1.0, 2.0, 3.0]), torch.tensor([2, 1])).tolist() == [3, 3]


def test_the_centred_advantage_gives_the_policy_ratio_exactly(logits, advantage):
    """log π_θ(y)/π₀(y) = Δ(y) − log E_{π₀} e^Δ with Δ = Ā: so DPO needs no reference model."""
    base = logits.softmax(-1)
    delta = advantage - (base * advantage).sum(-1, keepdim=True)
    want = delta[range(N), TOKENS] - (base * delta.exp()).sum(-1).log()
    close(log_ratio(logits, advantage, TOKENS)[0], want)


def test_a_function_of_the_state_alone_changes_nothing(logits, advantage):
    shift = torch.linspace(-9, 9, N, dtype=torch.float64)[:, None]
    close(log_ratio(logits, advantage + shift, TOKENS)[0], log_ratio(logits, advantage, TOKENS)[0])


def test_a_zero_head_is_bitwise_the_policy(logits):
    assert torch.equal(log_ratio(logits, torch.zeros(N, V), TOKENS)[0], torch.zeros(N, dtype=torch.float64))


def test_scaling_the_advantage_interpolates_between_base_and_tilt(logits, advantage):
    """π₀ e^{sΔ}/Z ∝ π₀^{1−s} π₁^s."""
    log_base, s = logits.log_softmax(-1), 0.3
    log_tilt = (logits + advantage).log_softmax(-1)
    mixed = ((1 - s) * log_base + s * log_tilt).log_softmax(-1)
    rho, base = log_ratio(logits, s * advantage, TOKENS)
    close(rho + base, mixed[range(N), TOKENS])


def test_every_advantage_entry_receives_gradient(logits, advantage):
    leaf = advantage.requires_grad_()
    log_ratio(logits, leaf, TOKENS)[0].sum().backward()
    assert (leaf.grad != 0).all()
    close(leaf.grad.sum(-1), torch.zeros(N, dtype=torch.float64))
