"""The fused log-ratio is the plain one, forwards and backwards."""

from __future__ import annotations

import math

import pytest
import torch

from trimtab.guidance import fused_log_ratio as module
from trimtab.guidance.fused_log_ratio import fused_log_ratio
from trimtab.guidance.losses.log_ratio import log_ratio


def inputs(num: int, rank: int = 3, vocab: int = 11, seed: int = 0):
    generator = torch.Generator().manual_seed(seed)
    h, lm_head, column, vocabulary = (
        torch.randn(*shape, generator=generator)
        for shape in ((num, 5), (vocab, 5), (num, rank), (vocab, rank))
    )
    tokens = torch.randint(vocab, (num,), generator=generator)
    return h, lm_head, column.requires_grad_(), vocabulary.requires_grad_(), tokens


@pytest.mark.parametrize("num", [1, 7, 8, 9, 20])
def test_it_equals_the_plain_log_ratio_with_its_gradients(num, monkeypatch):
    monkeypatch.setattr(module, "ROWS_AT_ONCE", 8)
    h, lm_head, column, vocabulary, tokens = inputs(num)
    weights = torch.randn(num, generator=torch.Generator().manual_seed(1))
    rho, base = fused_log_ratio(lambda h: h @ lm_head.T, h, column, vocabulary, tokens)
    plain_rho, plain_base = log_ratio(h @ lm_head.T, column @ vocabulary.T, tokens)
    torch.testing.assert_close((rho, base), (plain_rho, plain_base))
    gradients = torch.autograd.grad((rho * weights).sum(), (column, vocabulary))
    torch.testing.assert_close(
        gradients, torch.autograd.grad((plain_rho * weights).sum(), (column, vocabulary))
    )


def test_by_hand():
    """π₀ = (½, ½), A = (ln 3, 0), y = 0: see the docstring."""
    column = torch.tensor([[math.log(3)]], requires_grad=True)
    vocabulary = torch.tensor([[1.0], [0.0]], requires_grad=True)
    rho, base = fused_log_ratio(
        lambda h: torch.zeros(1, 2), torch.zeros(1, 1), column, vocabulary, torch.tensor([0])
    )
    assert (rho.item(), base.item()) == pytest.approx((0.4054651, math.log(0.5)), abs=1e-6)
    rho.sum().backward()
    assert column.grad.item() == pytest.approx(0.25)
    assert vocabulary.grad.flatten().tolist() == pytest.approx([0.2746531, -0.2746531])


def test_a_token_of_vanishing_probability_has_a_finite_ratio():
    column, vocabulary = torch.ones(1, 1), torch.tensor([[0.0], [-50.0]])
    rho, base = fused_log_ratio(
        lambda h: torch.tensor([[200.0, 0.0]]), torch.zeros(1, 1), column, vocabulary, torch.tensor([1])
    )
    assert (rho.item(), base.item()) == (-50, -200)


def test_an_advantage_of_a_frozen_vocabulary_gets_no_gradient_for_it():
    h, lm_head, column, vocabulary, tokens = inputs(4)
    rho, base = fused_log_ratio(lambda h: h @ lm_head.T, h, column, vocabulary.detach(), tokens)
    rho.sum().backward()
    assert vocabulary.grad is None
    assert column.grad.abs().max() > 0
    assert not base.requires_grad


def test_under_autocast_it_stays_within_its_precision():
    h, lm_head, column, vocabulary, tokens = inputs(6)
    exact, _ = fused_log_ratio(lambda h: h @ lm_head.T, h, column, vocabulary, tokens)
    with torch.autocast("cpu", torch.bfloat16):
        rho, _ = fused_log_ratio(lambda h: h @ lm_head.T, h, column, vocabulary, tokens)
    rho.sum().backward()
    assert rho.dtype == column.grad.dtype == vocabulary.grad.dtype == torch.float32
    assert 0 < (rho - exact).abs().max() < 0.1
