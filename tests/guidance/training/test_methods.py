from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch
from method_cases import OFFLINE, losses_of, make_config, make_head, make_items, make_objective

from trimtab.guidance.heads.manifest import ADVANTAGE_FORMS, REMEMBERING, SCALAR_FORMS, VALUE_FORMS
from trimtab.guidance.policy import Policy, load_policy
from trimtab.guidance.training.config import PartName, TrainConfig
from trimtab.guidance.training.methods import METHODS

FORMS = {"advantage": ADVANTAGE_FORMS, "value": VALUE_FORMS, "reward": SCALAR_FORMS}
CASES = [(part, loss, form) for part, loss in OFFLINE for form in FORMS[part]]


@pytest.fixture(scope="module")
def policy(policy_folder: Path) -> Policy:
    return load_policy(policy_folder)


@pytest.mark.parametrize(("part", "loss", "form"), CASES)
def test_every_method_lowers_its_loss(part: PartName, loss: str, form: str, policy: Policy):
    config, items = make_config(part, loss, form), make_items(METHODS[part][loss].rows)
    head = make_head(config, policy, untrained=part)
    objective = make_objective(part, config, head, policy, items)
    optimiser = torch.optim.Adam(objective.parameters(), lr=0.02)
    before = losses_of(part, config, objective, items).mean().item()
    for _ in range(40):
        optimiser.zero_grad()
        losses_of(part, config, objective, items).mean().backward()
        optimiser.step()
    after = losses_of(part, config, objective, items).mean().item()
    assert after < before - 0.02 * abs(before)


@pytest.mark.parametrize(("part", "loss", "form"), CASES)
def test_every_parameter_of_the_part_and_no_other_receives_gradient(
    part: PartName, loss: str, form: str, policy: Policy
):
    config, items = make_config(part, loss, form), make_items(METHODS[part][loss].rows)
    head = make_head(config, policy)
    objective = make_objective(part, config, head, policy, items)
    losses_of(part, config, objective, items).mean().backward()
    trained = {id(parameter) for parameter in objective.parameters()}
    for name, parameter in head.named_parameters():
        if name.startswith(part):
            assert id(parameter) in trained, name
            free = loss == "ranked" and name == "reward.bias"  # only differences are learned
            assert free or (parameter.grad != 0).any(), name
        else:
            assert id(parameter) not in trained, name
            assert parameter.grad is None, name
    for name, parameter in objective.named_parameters():
        assert parameter.grad is not None, name
    assert all(parameter.grad is None for parameter in policy.model.parameters())


@pytest.mark.parametrize(
    ("part", "loss", "form"),
    [
        *((part, loss, "") for part, loss in OFFLINE if loss != "kto"),
        *(("value", "monte_carlo", form) for form in REMEMBERING),
    ],
)
def test_an_items_loss_depends_on_no_other_item_and_on_no_order(
    part: PartName, loss: str, form: str, policy: Policy
):
    """KTO's does: its reference point is the batch's."""
    config, items = make_config(part, loss, form), make_items(METHODS[part][loss].rows)
    objective = make_objective(part, config, make_head(config, policy), policy, items)
    together = losses_of(part, config, objective, items)
    turned = losses_of(part, config, objective, items[::-1]).flip(0)
    alone = torch.cat([losses_of(part, config, objective, [item]) for item in items])
    torch.testing.assert_close(turned, together, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(alone, together, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("part", "loss"), OFFLINE)
def test_what_is_put_at_the_end_of_a_cut_reply_counts_for_the_reward_alone(
    part: PartName, loss: str, policy: Policy
):
    """The same cut replies with another token appended: advantage and value do not see it."""
    config, items = make_config(part, loss), make_items(METHODS[part][loss].rows, cut=True)
    others = [_with_other_ends(item) for item in items]
    head = make_head(config, policy)
    mine, other = (
        losses_of(part, config, make_objective(part, config, head, policy, each), each)
        for each in (items, others)
    )
    if part == "reward":
        assert not torch.allclose(mine, other, rtol=1e-3)
    else:
        torch.testing.assert_close(mine, other, rtol=1e-5, atol=1e-6)


def _with_other_ends(x: Any) -> Any:
    """x, a dataclass, with the last token of every cut reply in it changed."""
    if hasattr(x, "is_cut"):
        return dataclasses.replace(x, reply_ids=(*x.reply_ids[:-1], 5)) if x.is_cut else x
    if isinstance(x, tuple):
        return tuple(_with_other_ends(each) for each in x)
    if not dataclasses.is_dataclass(x):
        return x
    fields = {field.name: getattr(x, field.name) for field in dataclasses.fields(x)}
    return dataclasses.replace(x, **{name: _with_other_ends(value) for name, value in fields.items()})


@pytest.mark.parametrize("form", ADVANTAGE_FORMS)
@pytest.mark.parametrize("loss", [loss for part, loss in OFFLINE if part == "advantage"])
def test_an_untrained_advantage_is_exactly_the_policy(loss: str, form: str, policy: Policy):
    config, items = make_config("advantage", loss, form), make_items(METHODS["advantage"][loss].rows)
    head = make_head(config, policy, untrained="advantage")
    objective = make_objective("advantage", config, head, policy, items)
    scores, _ = objective(**objective.collate(items))
    figures = objective.figures()
    assert figures["kl"] == figures["flip_rate"] == 0
    for name in {"chosen", "rejected", "log_ratio", "mismatched", "advantage"} & scores.keys():
        assert (scores[name] == 0).all(), name


def test_only_a_tilt_has_a_scale_of_one():
    measured = {name for name, method in METHODS["advantage"].items() if not method.is_tilt}
    assert measured == {"monte_carlo", "cd_q", "distil"}


def test_the_last_batch_of_an_epoch_may_hold_a_single_label(policy: Policy):
    config: TrainConfig = make_config("advantage", "kto")
    items = make_items("unpaired")
    objective = make_objective("advantage", config, make_head(config, policy), policy, items)
    assert losses_of("advantage", config, objective, items[:1]).isfinite().all()
