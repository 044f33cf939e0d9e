from __future__ import annotations

import pytest
import torch

from trimtab.guidance.head import Head
from trimtab.guidance.manifest import (
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
