"""What stands in the padding, and how replies are padded and batched, changes no loss."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor

from trimtab.guidance.losses import Loss
from trimtab.guidance.losses.advantage import cd_q, q_monte_carlo
from trimtab.guidance.losses.common import Formula, LossResult, masked_mean
from trimtab.guidance.losses.policy_gradient import grpo, ppo, reinforce
from trimtab.guidance.losses.returns import gae, reward_to_go, whiten
from trimtab.guidance.losses.value import distributional, monte_carlo, position_weighted, td_lambda

MASK = torch.arange(5) < torch.tensor([[5], [1], [3]])
ROLLOUT_LOSSES: dict[str, tuple[Loss, int]] = {  # and how many [B, T] tensors stand before the mask
    "value monte_carlo": (monte_carlo, 2),
    "value position_weighted": (position_weighted, 2),
    "value td_lambda": (td_lambda, 2),
    "advantage monte_carlo": (q_monte_carlo, 2),
    "advantage cd_q": (cd_q, 3),
    "advantage ppo": (ppo, 2),
    "advantage reinforce": (reinforce, 2),
    "value distributional": (partial(distributional, low=-2.0, high=2.0), 2),
    "advantage grpo": (partial(grpo, tau=0.3), 3),
}
TARGETS: dict[str, tuple[Callable[..., object], int]] = {
    "reward_to_go": (reward_to_go, 1),
    "gae": (lambda rewards, values, mask: torch.stack(gae(rewards, values, mask, gamma=0.9, lam=0.8)), 2),
    "whiten": (whiten, 1),
}


def tensors(name: str, count: int, padding: float) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    bins = (7,) if name == "value distributional" else ()
    shapes = [(3, 5, *bins), *[(3, 5)] * (count - 1)]
    drawn = [torch.randn(shape, dtype=torch.float64, generator=generator) for shape in shapes]
    return [x.where(MASK[..., None] if x.dim() == 3 else MASK, padding).requires_grad_() for x in drawn]


def test_the_masked_mean_by_hand():
    x, mask = torch.tensor([[1.0, 2.0, float("nan")]]), torch.tensor([[True, True, False]])
    assert masked_mean(x, mask).item() == 1.5
    assert masked_mean(x, torch.zeros_like(mask)).item() == 0


def test_a_formula_is_handed_the_scores_and_options_that_it_names_and_a_score_goes_first():
    def weighed(x: Tensor, weight: float, scale: float) -> LossResult:
        return LossResult(x * weight * scale, {})

    config = SimpleNamespace(weight=2.0, scale=3.0, rank=4)
    loss = Formula(weighed, ("weight", "scale", "rank")).bind(config)
    x = torch.ones(1)
    assert loss(x=x, unread=x).per_example.item() == 6
    assert loss(x=x, scale=5 * x).per_example.item() == 10


@pytest.mark.parametrize("padding", [7.0, 1e300, float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("name", ROLLOUT_LOSSES)
def test_what_stands_in_the_padding_changes_neither_loss_nor_gradient_nor_metric(name: str, padding: float):
    loss, count = ROLLOUT_LOSSES[name]
    clean, dirty = tensors(name, count, 0.0), tensors(name, count, padding)
    results = [loss(*inputs, MASK) for inputs in (clean, dirty)]
    assert torch.equal(results[0].per_example, results[1].per_example)
    assert results[0].metrics == results[1].metrics
    for result in results:
        result.per_example.mean().backward()
    for one, other in zip(clean, dirty, strict=True):
        assert (one.grad is None) == (other.grad is None)
        assert one.grad is None or other.grad is None or torch.equal(one.grad, other.grad)


@pytest.mark.parametrize("name", TARGETS)
def test_what_stands_in_the_padding_changes_no_target(name: str):
    target, count = TARGETS[name]
    want = target(*tensors(name, count, 0.0), MASK)
    assert torch.equal(want, target(*tensors(name, count, float("nan")), MASK))
    assert (want[..., ~MASK] == 0).all()


@pytest.mark.parametrize(
    "name", [name for name in ROLLOUT_LOSSES if "ppo" not in name and "grpo" not in name]
)
def test_a_reply_costs_the_same_on_whichever_side_and_how_far_it_is_padded(name: str):
    loss, count = ROLLOUT_LOSSES[name]
    inputs = tensors(name, count, 0.0)
    want = loss(*inputs, MASK).per_example
    for before, after in ((4, 0), (0, 3)):
        padded = [torch.cat([x[:, :before] * 0, x, x[:, :after] * 0], 1) for x in inputs]
        mask = torch.cat([MASK[:, :before] & False, MASK, MASK[:, :after] & False], 1)
        torch.testing.assert_close(loss(*padded, mask).per_example, want, rtol=1e-12, atol=1e-12)
    alone = loss(*[x[2:, :3] for x in inputs], MASK[2:, :3]).per_example
    torch.testing.assert_close(alone, want[2:], rtol=1e-12, atol=1e-12)
