from __future__ import annotations

import pytest
import torch

from trimtab.guidance.heads.forms import Head, along, memory_of
from trimtab.guidance.heads.manifest import (
    ACTIVATIONS,
    ADVANTAGE_FORMS,
    REMEMBERING,
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


def remembering(form: str, bins: int = 0, seed: int = 0) -> Head:
    part = ScalarPart(form, 4, bins=bins, low=-1.0, high=3.0 if bins else 0.0, units=3)
    torch.manual_seed(seed)
    head = Head(Parts(value=part), D, V).requires_grad_(False)
    for parameter in head.parameters():
        parameter.normal_()
    return head


@pytest.mark.parametrize("form", REMEMBERING)
def test_an_untrained_value_that_remembers_is_exactly_zero(form: str):
    head = Head(Parts(value=ScalarPart(form, 4)), D, V)
    assert torch.equal(along(head.value, torch.randn(5, D), torch.tensor([2, 3])), torch.zeros(5))


@pytest.mark.parametrize("bins", [0, 5])
@pytest.mark.parametrize("form", REMEMBERING)
def test_a_value_read_state_by_state_is_that_of_the_reply_read_at_once(form: str, bins: int):
    """Replies of 4, 1 and 6 states, in one batch, alone, and step by step."""
    head, lengths = remembering(form, bins), torch.tensor([4, 1, 6])
    h = torch.randn(11, D)
    together = along(head.value, h, lengths)
    memory = memory_of(head.value)
    for states, want in zip(h.split(lengths.tolist()), together.split(lengths.tolist()), strict=True):
        torch.testing.assert_close(along(head.value, states, torch.tensor([len(states)])), want)
        state, values = torch.zeros(1, memory.state_size), []
        for each in states:
            value, state = head.value.step(each[None], state)
            values.append(value)
        torch.testing.assert_close(torch.cat(values), want)
        torch.testing.assert_close(memory(states[None], torch.zeros_like(state))[1], state)


@pytest.mark.parametrize("form", REMEMBERING)
def test_a_value_that_remembers_reads_what_was_before_and_nothing_that_comes(form: str):
    head, h = remembering(form), torch.randn(6, D)
    other = torch.cat([h[:2], torch.randn(1, D), h[3:]])
    mine, theirs = (along(head.value, x, torch.tensor([6])) for x in (h, other))
    assert torch.equal(mine[:2], theirs[:2])
    assert ((mine[3:] - theirs[3:]).abs() > 1e-4).all()


def test_a_mean_is_the_mean_of_what_was_written():
    """φ identity, down = 1ᵀ over the first two of h: features 3, 5 and −2 have the means 3, 4 and 2."""
    head = Head(Parts(value=ScalarPart("mean", 1, "identity", units=1)), D, V).requires_grad_(False)
    memory, h = memory_of(head.value), torch.zeros(1, 3, D)
    memory.down.zero_()[0, :2] = 1
    h[0, :, :2] = torch.tensor([[1.0, 2.0], [5.0, 0.0], [-1.0, -1.0]])
    assert memory(h, torch.zeros(1, 2))[0].flatten().tolist() == [3.0, 4.0, 2.0]
