from __future__ import annotations

import pytest
import torch

from trimtab.guidance.heads.forms import Head
from trimtab.guidance.heads.manifest import (
    ACTIVATIONS,
    ADVANTAGE_FORMS,
    SCALAR_FORMS,
    AdvantagePart,
    Parts,
    ScalarPart,
)

D, V = 6, 11


@pytest.mark.parametrize("form", ADVANTAGE_FORMS)
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_an_untrained_advantage_is_exactly_zero(form: str, activation: str):
    head = Head(Parts(AdvantagePart(form, 4, activation)), D, V)
    advantage = head.advantage(torch.randn(5, D), torch.randn(V, D))
    assert advantage.shape == (5, V)
    assert torch.equal(advantage, torch.zeros(5, V))


@pytest.mark.parametrize("form", SCALAR_FORMS)
def test_an_untrained_value_is_exactly_zero(form: str):
    head = Head(Parts(value=ScalarPart(form, 4)), D, V)
    assert torch.equal(head.value(torch.randn(5, 2, D)), torch.zeros(5, 2))
    assert head.advantage is None
    assert head.reward is None


def test_a_tied_advantage_is_the_output_embedding_of_g():
    """φ identity, down = [1 0 …], up = 2·e₁: g = 2 h₀ e₁, so A(a) = 2 h₀ W[a, 1]."""
    head = Head(Parts(AdvantagePart("tied", 1, "identity")), D, V)
    with torch.no_grad():
        head.advantage.down.copy_(torch.eye(D)[:1])
        head.advantage.up.copy_(2 * torch.eye(D)[:, 1:2])
    h, lm_head = torch.randn(3, D), torch.randn(V, D)
    torch.testing.assert_close(head.advantage(h, lm_head), 2 * h[:, :1] * lm_head[:, 1])


def test_a_lowrank_advantage_has_a_vocabulary_of_its_own():
    """silu(1) = 0.7310585786, so with down·h = 1 and up = (3, 0, …) the first token gets 2.193175736."""
    head = Head(Parts(AdvantagePart("lowrank", 1, "silu")), D, V)
    with torch.no_grad():
        head.advantage.down.fill_(1 / D)
        head.advantage.up.zero_()[0] = 3
    advantage = head.advantage(torch.ones(1, D), torch.full((V, D), float("nan")))
    torch.testing.assert_close(advantage[0, 0].item(), 2.193175736)
    assert advantage[0, 1:].abs().max() == 0


@pytest.mark.parametrize("form", SCALAR_FORMS)
def test_a_value_of_bins_is_their_mean_and_untrained_their_middle(form: str):
    """Bins at −1, 1, 3 with odds 1 : 2 : 1: ¼·(−1) + ½·1 + ¼·3 = 1; with 1 : 1 : 2: ¼(−1 + 1) + ½·3 = 1.5."""
    head = Head(Parts(value=ScalarPart(form, 4, bins=3, low=-1.0, high=3.0)), D, V)
    h = torch.randn(5, 2, D)
    torch.testing.assert_close(head.value(h), torch.ones(5, 2))
    for odds, want in (((1, 2, 1), 1.0), ((1, 1, 2), 1.5)):
        with torch.no_grad():
            head.value.bias.copy_(torch.tensor(odds).log())
        assert head.value.logits(h).shape == (5, 2, 3)
        torch.testing.assert_close(head.value(h), torch.full((5, 2), want))


@pytest.mark.parametrize("form", ADVANTAGE_FORMS)
def test_an_advantage_is_its_column_on_its_vocabulary(form: str):
    head = Head(Parts(AdvantagePart(form, 4)), D, V)
    torch.nn.init.normal_(head.advantage.up)
    h, lm_head = torch.randn(5, D), torch.randn(V, D)
    product = head.advantage.column(h) @ head.advantage.vocabulary(lm_head).T
    torch.testing.assert_close(product, head.advantage(h, lm_head))
