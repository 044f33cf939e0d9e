"""Activation steering: what is contrasted, which coefficients are tried, and coefficient 0."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from trimtab.guidance.data.items import RolloutItem
from trimtab.guidance.errors import DataError
from trimtab.guidance.evaluation.baselines.activation_steering import (
    Steering,
    coefficients_for,
    contrast,
    decoder_layers,
)
from trimtab.guidance.policy import load_policy
from trimtab.guidance.text.encoding import EncodedReply


def rollout(prompt: int, token: int, reward: float | None) -> RolloutItem:
    return RolloutItem(EncodedReply((prompt,), (token, 9)), reward)


def test_replies_are_contrasted_within_their_prompt_and_over_all_where_none_has_two():
    """A prompt whose rewards are equal tells nothing, however high they are."""
    many = [rollout(1, i, float(i)) for i in range(8)]
    high, low = contrast([*many, rollout(2, 8, 50.0), rollout(2, 7, 50.0)])
    assert [[r.reply_ids[0] for r in side] for side in (high, low)] == [[6, 7], [0, 1]]
    high, low = contrast([rollout(i, i, float(i)) for i in range(4)])
    assert [[r.reply_ids[0] for r in side] for side in (high, low)] == [[3], [0]]
    with pytest.raises(DataError, match="all rewards are equal"):
        contrast([rollout(1, 1, 2.0), rollout(1, 2, 2.0)])


def test_coefficients_are_read_between_powers_of_two_and_end_where_nothing_costs_so_much():
    """KL = 4 c²: 1 and 16 nats are ½ and 2, both tried; 25 is read between 2 and 4."""
    asked: list[float] = []

    def mean_kl(c: float) -> float:
        asked.append(c)
        return 4 * c * c

    assert coefficients_for(mean_kl, (1.0, 16.0, 25.0)) == pytest.approx((0.5, 2.0, 2.5))
    assert sorted(asked) == [0.5, 1, 2, 4]
    assert coefficients_for(lambda c: 0.0, (1.0,)) == (64.0,)


def test_a_coefficient_of_zero_changes_no_bit_and_the_hook_goes_when_it_is_done(policy_folder: Path):
    model = load_policy(policy_folder, device="cpu").model
    ids = torch.tensor([[1, 2, 3]])
    steering = Steering(0, torch.ones(model.config.hidden_size))
    plain = model(ids).logits
    with steering.of(model, 0.0):
        assert torch.equal(model(ids).logits, plain)
    with steering.of(model, 2.0):
        assert not torch.allclose(model(ids).logits, plain)
    assert torch.equal(model(ids).logits, plain)
    assert not decoder_layers(model)[0]._forward_hooks
