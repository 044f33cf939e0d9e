"""The fused log-ratio is the plain one, forwards and backwards."""

from __future__ import annotations

import math

import pytest
import torch

from trimtab.guidance.losses import vocabulary_tiles as tiles
from trimtab.guidance.losses.common import log_ratio
from trimtab.guidance.losses.fused_log_ratio import fused_log_ratio
from trimtab.guidance.losses.vocabulary_tiles import Workspace


def inputs(num: int, rank: int = 3, vocab: int = 11, seed: int = 0):
    generator = torch.Generator().manual_seed(seed)
    h, lm_head, column, vocabulary = (
        torch.randn(*shape, generator=generator)
        for shape in ((num, 5), (vocab, 5), (num, rank), (vocab, rank))
    )
    tokens = torch.randint(vocab, (num,), generator=generator)
    return h, lm_head, column.requires_grad_(), vocabulary.requires_grad_(), tokens


def writer(lm_head):
    def write(h, out):
        torch.mm(h, lm_head.T, out=out)

    return write


def keep_rows(num: int, monkeypatch, vocab: int = 11):
    """Tiles of four rows, and as many rows kept as num."""
    monkeypatch.setitem(tiles.KEPT_BYTES, "cpu", num * vocab * 4)
    monkeypatch.setattr(tiles, "TILE_BYTES", 4 * vocab * 4)


@pytest.mark.parametrize("num", [1, 7, 8, 9, 20])
@pytest.mark.parametrize("num_kept", [0, 5, 100])
def test_it_equals_the_plain_log_ratio_with_its_gradients_however_much_is_kept(num, num_kept, monkeypatch):
    keep_rows(num_kept, monkeypatch)
    h, lm_head, column, vocabulary, tokens = inputs(num)
    weights = torch.randn(num, generator=torch.Generator().manual_seed(1))
    rho, base, kl = fused_log_ratio(writer(lm_head), h, column, vocabulary, tokens)
    exact = [x.detach().double() for x in (h, lm_head, column, vocabulary)]
    exact_h, exact_head, exact_column, exact_vocabulary = (x.requires_grad_() for x in exact)
    z, delta = exact_h @ exact_head.T, exact_column @ exact_vocabulary.T
    plain_rho, plain_base = log_ratio(z, delta, tokens)
    tilt, plain = (z + delta).log_softmax(-1), z.log_softmax(-1)
    plain_kl = (tilt.exp() * (tilt - plain)).sum(-1)
    for got, want in ((rho, plain_rho), (base, plain_base), (kl, plain_kl)):
        torch.testing.assert_close(got.double(), want, rtol=1e-6, atol=2e-6)
    gradients = torch.autograd.grad((rho * weights).sum(), (column, vocabulary))
    wanted = torch.autograd.grad((plain_rho * weights).sum(), (exact_column, exact_vocabulary))
    for got, want in zip(gradients, wanted, strict=True):
        torch.testing.assert_close(got.double(), want, rtol=1e-5, atol=1e-6)


def test_no_more_is_kept_than_may_be_and_nothing_without_a_gradient(monkeypatch):
    """A step of any size needs the same memory: rows beyond it are computed again backwards."""
    keep_rows(5, monkeypatch)
    h, lm_head, column, vocabulary, tokens = inputs(20)
    sizes: list[int] = []

    def write(h, out):
        sizes.append(len(out))
        torch.mm(h, lm_head.T, out=out)

    rho = fused_log_ratio(write, h, column, vocabulary, tokens).log_ratio
    assert sizes == [5, 4, 4, 4, 3]
    rho.sum().backward()
    assert sizes[5:] == [4, 4, 4, 3]
    sizes.clear()
    with torch.no_grad():
        fused_log_ratio(write, h, column, vocabulary, tokens)
    assert sizes == [4] * 5


def test_a_workspace_is_lent_again_and_never_to_two_at_once():
    h, lm_head, column, vocabulary, tokens = inputs(9)
    workspace = Workspace()
    first, second = (
        fused_log_ratio(writer(lm_head), h, column, vocabulary, tokens, workspace).log_ratio for _ in "ab"
    )
    alone = torch.autograd.grad(
        fused_log_ratio(writer(lm_head), h, column, vocabulary, tokens).log_ratio.sum(), vocabulary
    )
    for rho in (second, first):
        torch.testing.assert_close(torch.autograd.grad(rho.sum(), vocabulary), alone)
    lent = workspace.take(4, len(lm_head), h.device)
    assert lent._base is not None
    assert len(lent._base) == 9


def test_by_hand():
    """π₀ = (½, ½), A = (ln 3, 0), y = 0: see the docstring."""
    column = torch.tensor([[math.log(3)]], requires_grad=True)
    vocabulary = torch.tensor([[1.0], [0.0]], requires_grad=True)
    rho, base, kl = fused_log_ratio(
        lambda h, out: out.zero_(), torch.zeros(1, 1), column, vocabulary, torch.tensor([0])
    )
    wanted = (0.4054651, math.log(0.5), 0.1308120)
    assert (rho.item(), base.item(), kl.item()) == pytest.approx(wanted, abs=1e-6)
    rho.sum().backward()
    assert column.grad.item() == pytest.approx(0.25)
    assert vocabulary.grad.flatten().tolist() == pytest.approx([0.2746531, -0.2746531])


def test_a_token_of_vanishing_probability_has_a_finite_ratio():
    column, vocabulary = torch.ones(1, 1), torch.tensor([[0.0], [-50.0]])
    z, token = torch.tensor([[200.0, 0.0]]), torch.tensor([1])
    rho, base, _ = fused_log_ratio(lambda h, out: out.copy_(z), torch.zeros(1, 1), column, vocabulary, token)
    assert (rho.item(), base.item()) == (-50, -200)


def test_an_advantage_of_a_frozen_vocabulary_gets_no_gradient_for_it():
    h, lm_head, column, vocabulary, tokens = inputs(4)
    rho, base, _ = fused_log_ratio(writer(lm_head), h, column, vocabulary.detach(), tokens)
    rho.sum().backward()
    assert vocabulary.grad is None
    assert column.grad.abs().max() > 0
    assert not base.requires_grad


def test_under_autocast_it_stays_within_its_precision():
    h, lm_head, column, vocabulary, tokens = inputs(6)
    exact, *_ = fused_log_ratio(writer(lm_head), h, column, vocabulary, tokens)
    with torch.autocast("cpu", torch.bfloat16):
        rho, *_ = fused_log_ratio(writer(lm_head), h, column, vocabulary, tokens)
    rho.sum().backward()
    assert rho.dtype == column.grad.dtype == vocabulary.grad.dtype == torch.float32
    assert 0 < (rho - exact).abs().max() < 0.1
