"""The base's mean of the vocabulary's rows, and what is remembered of it."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from trimtab.guidance.losses import vocabulary_tiles as tiles
from trimtab.guidance.policy import Policy, load_policy
from trimtab.guidance.text.encoding import EncodedReply
from trimtab.guidance.training.objectives.tilt import BaseMeans, base_mean


@pytest.fixture(scope="module")
def policy(policy_folder: Path) -> Policy:
    return load_policy(policy_folder)


@pytest.mark.parametrize("num_kept", [0, 3, 100])
def test_it_is_the_plain_product_with_its_gradient_however_much_is_kept(num_kept, monkeypatch):
    generator = torch.Generator().manual_seed(0)
    h, lm_head, vocabulary, weight = (
        torch.randn(*shape, generator=generator) for shape in ((9, 5), (11, 5), (11, 3), (9, 3))
    )
    monkeypatch.setitem(tiles.KEPT_BYTES, "cpu", num_kept * 11 * 4)
    monkeypatch.setattr(tiles, "TILE_BYTES", 4 * 11 * 4)
    vocabulary.requires_grad_()
    mean = base_mean(lambda h, out: torch.mm(h, lm_head.T, out=out), h, vocabulary)
    plain = (h.double() @ lm_head.T.double()).softmax(-1) @ vocabulary.double()
    torch.testing.assert_close(mean.double(), plain, rtol=1e-6, atol=1e-6)
    (gradient,) = torch.autograd.grad((mean * weight).sum(), vocabulary)
    (wanted,) = torch.autograd.grad((plain * weight).sum(), vocabulary)
    torch.testing.assert_close(gradient, wanted)


def test_by_hand():
    """π₀ = (¾, ¼), vocabulary = (1, 5): see the docstring."""
    z = torch.tensor([[3.0, 1.0]]).log()
    vocabulary = torch.tensor([[1.0], [5.0]], requires_grad=True)
    mean = base_mean(lambda h, out: out.copy_(z), torch.zeros(1, 1), vocabulary)
    mean.sum().backward()
    assert mean.item() == pytest.approx(2)
    assert vocabulary.grad.flatten().tolist() == pytest.approx([0.75, 0.25])


def test_means_are_remembered_of_as_many_replies_as_there_is_room_for(policy: Policy):
    d = policy.lm_head.shape[1]
    replies = [EncodedReply((1,), (2, 3, token)) for token in (4, 5, 6)]
    h = [torch.randn(3, d, generator=torch.Generator().manual_seed(i)) for i in range(3)]
    means = BaseMeans(policy, max_bytes=2 * 3 * d * 4)
    means.compute(zip(replies, h, strict=True))
    assert means.of(replies) is None
    wanted = torch.cat([policy.logits(x).softmax(-1) @ policy.lm_head for x in (h[1], h[0])])
    torch.testing.assert_close(means.of([replies[1], replies[0]]), wanted)
