"""Inputs of an advantage: what they gain by hand, and that a memory sees what h does not say."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import cast

import numpy as np
import pytest
import torch
from torch import Tensor

from examples.gold.inputs import Advantage, InputsConfig, Reply, compare, gain, sums, train
from trimtab.guidance.policy import Policy

HIDDEN, VOCAB = 4, 3


@dataclass
class Identity:
    hidden_size: int = HIDDEN


class EvenPolicy:
    """Every token is as likely as the others, whatever was said."""

    vocab_size = VOCAB
    identity = Identity()

    def logits(self, h: Tensor) -> Tensor:
        return torch.zeros(len(h), VOCAB)


POLICY = cast(Policy, EvenPolicy())


def reply(h: Tensor, tokens: Sequence[int], earned: Sequence[float]) -> Reply:
    to_go = torch.tensor(earned)
    return Reply(h.half(), torch.zeros_like(h).half(), torch.tensor(tokens), to_go, to_go)


def test_the_gain_by_hand() -> None:
    assert gain(np.array([[2.0, 4.0], [4.0, 4.0]])) == pytest.approx(3)  # 3 · √(2 · 2 ÷ 4)


def test_sums_by_hand() -> None:
    part = Advantage("h", HIDDEN, VOCAB, rank=1)
    with torch.no_grad():
        part.down.zero_()
        part.down[0, 0] = 1
        part.up.copy_(torch.tensor([[3.0], [0.0], [0.0]]))
    h = torch.zeros(2, HIDDEN)
    h[:, 0] = 1
    inner = torch.nn.functional.silu(torch.tensor(1.0)).item()
    # A = (3, 0, 0) · silu(1): Ā of tokens 0 and 1 is 2 and −1 of these, of variance 2; G less its mean is ±1.
    found = sums(part, [reply(h, (0, 1), (3.0, 1.0))], POLICY)
    assert found[:, 0] == pytest.approx([3 * inner, 2 * 2 * inner**2], rel=1e-5)


def test_the_same_sums_differ_by_nothing() -> None:
    draw = np.random.default_rng(0)
    pairs = draw.random((2, 40)) + 1
    table = compare({"h": [pairs], "mean": [pairs]}, list(range(40)))
    assert table.rows[1][2] == "+0.00 [+0.00, +0.00]"


def test_an_advantage_that_remembers_learns_what_h_does_not_say() -> None:
    """Token 0 earns where the reply began with h = e₁ and costs where with e₂; later h say nothing."""
    draw = np.random.default_rng(0)
    replies = []
    for _ in range(256):
        began = int(draw.integers(2))
        h = torch.zeros(2, HIDDEN)
        h[0, began], h[1, 2] = 4, 1
        tokens = draw.integers(VOCAB, size=2).tolist()
        earned = (1.0 if began == 0 else -1.0) * (tokens[1] == 0)
        replies.append(reply(h, tokens, (earned, earned)))
    config = InputsConfig(rollouts=__file__, epochs=24, rank=8, learning_rate=1e-2)  # type: ignore[arg-type]
    gains = {
        kind: gain(sums(train(kind, 0, replies, POLICY, config), replies, POLICY))
        for kind in ("h", "mean", "gru")
    }
    assert gains["mean"] > gains["h"] + 0.3
    assert gains["gru"] > gains["h"] + 0.3
