from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from trimtab.guidance.losses.credit import Scored
from trimtab.guidance.losses.policy_gradient import PROMPTS

MASK = torch.tensor([[True, True], [True, False]])


def scored(rewards: list[list[float]], kl: list[list[float]], **changes: Any) -> Scored:
    """Two replies to one prompt, of two tokens and of one; what pads the second is NaN."""
    settings: dict[str, Any] = {
        "values": torch.zeros(2, 2),
        "group": torch.tensor([0, 0]),
        "is_dense": False,
        "is_exact": False,
        "tau": 0.5,
        "discount": 1.0,
        "lam": 1.0,
    }
    return Scored(padded(rewards), padded(kl), mask=MASK, **(settings | changes))


def padded(rows: list[list[float]]) -> Tensor:
    return torch.tensor([row + [float("nan")] * (2 - len(row)) for row in rows])


def assert_credit(found: Tensor, wanted: list[list[float]]) -> None:
    torch.testing.assert_close(found, torch.tensor(wanted), atol=1e-5, rtol=1e-5)


def test_rloo_by_hand():
    """R = (4 − ½·(1 + 2), 3 − ½·2) = (2½, 2): each less the other, at all of its tokens."""
    credit = PROMPTS["rloo"].credit(scored([[0, 4], [3]], [[1, 2], [2]]))
    assert_credit(credit.advantages, [[0.5, 0.5], [-0.5, 0]])
    assert credit.kl_weight == 0.5


def test_rloo_of_token_rewards_by_hand():
    """r = (1 − ½, 4 − 1) and (3 − 1): G = (½ + ½·3, 3) = (2, 3), mean 2½, and (2)."""
    credit = PROMPTS["rloo"].credit(scored([[1, 4], [3]], [[1, 2], [2]], is_dense=True, discount=0.5))
    assert_credit(credit.advantages, [[0, 1], [-0.5, 0]])


def test_an_exact_kl_is_answered_for_by_the_token_that_led_to_it():
    """KL = (1, 2) at s_0, s_1: r_1 = 0 − ½·½·2, r_2 = 4: G = (−½ + 2, 4); V = 1 before both."""
    values = torch.ones(2, 2)
    reinforce = PROMPTS["reinforce"].credit(
        scored([[0, 4], [3]], [[1, 2], [2]], is_exact=True, discount=0.5, values=values)
    )
    assert_credit(reinforce.returns, [[1.5, 4], [3, 0]])
    assert_credit(reinforce.advantages, [[0.5, 3], [2, 0]])


def test_grpo_by_hand():
    """R = (4, 3) without the KL: mean 3½, std ½√2: ±½/(0.70711 + 1e-4) = ±0.70701."""
    credit = PROMPTS["grpo"].credit(scored([[0, 4], [3]], [[1, 2], [2]]))
    assert_credit(credit.advantages, [[0.707007, 0.707007], [-0.707007, 0]])


def test_grpo_of_token_rewards_by_hand():
    """G = (5, 4) and (3): mean 4, std 1."""
    credit = PROMPTS["grpo"].credit(scored([[1, 4], [3]], [[1, 2], [2]], is_dense=True))
    assert_credit(credit.advantages, [[0.9999, 0], [-0.9999, 0]])


def test_ppo_whitens_after_the_returns_and_weighs_the_kl_alike():
    """λ = 1, V = 0: A = G = (2½ − 0, 3, 2): r = (0 − ½, 4 − 1), (3 − 1): G = (2½, 3), (2): spread √(1/6)."""
    credit = PROMPTS["ppo"].credit(scored([[0, 4], [3]], [[1, 2], [2]]))
    assert_credit(credit.returns, [[2.5, 3], [2, 0]])
    assert_credit(credit.advantages, [[0, 6**0.5 / 2], [-(6**0.5) / 2, 0]])
    assert credit.kl_weight == pytest.approx(0.5 * 6**0.5)


@pytest.mark.parametrize("loss", PROMPTS)
@pytest.mark.parametrize("is_dense", [True, False])
def test_nothing_is_credited_beyond_a_replys_end(loss: str, is_dense: bool):
    credit = PROMPTS[loss].credit(scored([[0, 4], [3]], [[1, 2], [2]], is_dense=is_dense))
    assert credit.advantages[1, 1] == 0
    assert credit.advantages.isfinite().all()
