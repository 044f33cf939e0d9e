from __future__ import annotations

import copy
import dataclasses
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from method_cases import make_config, make_head, make_items, make_objective

from trimtab.guidance.data.items import RolloutItem
from trimtab.guidance.errors import DataError, HeadError
from trimtab.guidance.features.source import FeatureCache, Steps
from trimtab.guidance.heads.forms import Head
from trimtab.guidance.heads.manifest import ADVANTAGE_FORMS, REMEMBERING, Parts
from trimtab.guidance.policy import Policy, load_policy
from trimtab.guidance.text.encoding import EncodedReply
from trimtab.guidance.training.config import TrainConfig
from trimtab.guidance.training.objectives.rollouts import ReturnValue, returns_of

FINISHED = EncodedReply((6, 7), (8, 9, 3))
CUT = EncodedReply((8,), (10, 11, 12, 3), is_cut=True)


@pytest.fixture(scope="module")
def policy(policy_folder: Path) -> Policy:
    return load_policy(policy_folder)


def discounted(config: TrainConfig, discount: float) -> TrainConfig:
    return dataclasses.replace(
        config,
        advantage=dataclasses.replace(config.advantage, discount=discount),
        value=dataclasses.replace(config.value, discount=discount),
    )


def test_a_reply_is_paid_at_its_last_drawn_token():
    """Three tokens each, the cut one's end not counted: 4 after the third is worth 1, 2, 4 at γ = ½."""
    for reply in (FINISHED, CUT):
        assert returns_of(RolloutItem(reply, 4.0), 0.5).tolist() == [1, 2, 4]
        assert returns_of(RolloutItem(reply, None, (1.0, 0.0, 4.0)), 0.5).tolist() == [2, 2, 4]


def test_a_value_forecasts_from_each_drawn_token(policy: Policy):
    items = [RolloutItem(FINISHED, 4.0), RolloutItem(CUT, 2.0)]
    config = discounted(make_config("value", "monte_carlo"), 0.5)
    head = make_head(config, policy)
    objective = make_objective("value", config, head, policy, items)
    scores, _ = objective(**objective.collate(items))
    assert scores["returns"].tolist() == [[1, 2, 4], [0.5, 1, 2]]
    assert scores["mask"].tolist() == [[True] * 3] * 2
    for row, h in enumerate(FeatureCache(policy, show_progress=False).get([FINISHED, CUT])):
        torch.testing.assert_close(scores["values"][row], head.value(h[:3]))


class EverySecond(FeatureCache):
    """Holds s_0, s_2, … of each reply alone."""

    def steps(self, replies: Sequence[EncodedReply]) -> list[Steps]:
        at = [torch.arange(0, len(reply.reply_ids), 2) for reply in replies]
        return [Steps(h[t], t) for h, t in zip(self.get(replies), at, strict=True)]


@pytest.mark.parametrize("loss", ["monte_carlo", "distributional"])
def test_a_value_learns_at_the_positions_that_its_features_hold(loss: str, policy: Policy):
    items = [RolloutItem(FINISHED, 4.0), RolloutItem(CUT, 2.0)]
    config = discounted(make_config("value", loss), 0.5)
    head = make_head(config, policy)
    objective = type(make_objective("value", config, head, policy, items))(
        head, config, EverySecond(policy, show_progress=False)
    )
    scores, _ = objective(**objective.collate(items))
    assert scores["returns"].tolist() == [[1, 4], [0.5, 2]]
    full = ReturnValue(head, config, FeatureCache(policy, show_progress=False))
    want, _ = full(**full.collate(items))
    if loss == "monte_carlo":
        torch.testing.assert_close(scores["values"], want["values"][:, ::2])
    else:
        assert scores["logits"].shape == (2, 2, config.value.bins)


@pytest.mark.parametrize("form", ADVANTAGE_FORMS)
@pytest.mark.parametrize("loss", ["monte_carlo", "cd_q"])
def test_an_action_value_is_the_value_and_the_advantage_of_the_drawn_token(
    loss: str, form: str, policy: Policy
):
    """Centred where the next value is read off V, which must then be the mean of Q."""
    items = [RolloutItem(FINISHED, 4.0), RolloutItem(CUT, 2.0)]
    config = make_config("advantage", loss, form)
    head = make_head(config, policy)
    objective = make_objective("advantage", config, head, policy, items)
    scores, _ = objective(**objective.collate(items))
    for row, (item, h) in enumerate(
        zip(items, FeatureCache(policy, show_progress=False).get([FINISHED, CUT]), strict=True)
    ):
        advantage, base = head.advantage(h[:3], policy.lm_head), policy.logits(h[:3]).softmax(-1)
        mean = (base * advantage).sum(-1, keepdim=True)
        drawn = (advantage - mean if loss == "cd_q" else advantage).gather(
            1, torch.tensor(item.reply.reply_ids[:3])[:, None]
        )[:, 0]
        torch.testing.assert_close(scores["q"][row], head.value(h[:3]) + drawn, rtol=1e-4, atol=1e-5)


def test_cd_q_aims_at_the_next_value_and_in_the_end_at_the_reward(policy: Policy):
    """γ = ½: the targets of Q(s_0, y_1), Q(s_1, y_2), Q(s_2, y_3) are ½V(s_1), ½V(s_2) and the reward, 4."""
    items = [RolloutItem(FINISHED, 4.0), RolloutItem(EncodedReply((9,), (8, 3)), 1.0)]
    config = discounted(make_config("advantage", "cd_q"), 0.5)
    head = make_head(config, policy)
    objective = make_objective("advantage", config, head, policy, items)
    scores, _ = objective(**objective.collate(items))
    h, other = FeatureCache(policy, show_progress=False).get([item.reply for item in items])
    values, others = head.value(h).detach(), head.value(other).detach()
    target = scores["rewards"] + scores["next_value"]
    torch.testing.assert_close(target[0], torch.tensor([values[1] / 2, values[2] / 2, 4.0]))
    torch.testing.assert_close(target[1, :2], torch.tensor([others[1] / 2, 1.0]))
    assert scores["mask"].tolist() == [[True] * 3, [True, True, False]]
    assert not scores["next_value"].requires_grad


@pytest.mark.parametrize("loss", ["monte_carlo", "cd_q"])
def test_the_heads_own_value_is_not_touched_by_what_an_advantage_learns(loss: str, policy: Policy):
    config, items = make_config("advantage", loss), make_items("rollouts")
    head = make_head(config, policy)
    before = copy.deepcopy(head.value.state_dict())
    head.value.requires_grad_(False)
    objective = make_objective("advantage", config, head, policy, items)
    assert all(parameter.requires_grad for parameter in objective.parameters())
    with torch.no_grad():
        for parameter in objective.parameters():
            parameter.add_(1)
    assert all(torch.equal(head.value.state_dict()[name], tensor) for name, tensor in before.items())


def test_an_advantage_needs_no_value_in_its_head(policy: Policy):
    config, items = make_config("advantage", "monte_carlo"), make_items("rollouts")
    head = make_head(config, policy)
    head.value = None
    objective = make_objective("advantage", config, head, policy, items)
    scores, _ = objective(**objective.collate(items))
    assert scores["q"].isfinite().all()


@pytest.mark.parametrize(("part", "loss"), [("value", "td_lambda"), ("reward", "regression")])
def test_an_untrained_scalar_begins_at_the_mean_and_a_trained_one_where_it_was(
    part: str, loss: str, policy: Policy
):
    config, items = discounted(make_config(part, loss), 1.0), make_items("rollouts")
    items = [dataclasses.replace(item, reward=item.reward + 50) for item in items]
    fresh, trained = make_head(config, policy, untrained=part), make_head(config, policy)
    bias = getattr(trained, part).bias.item()
    make_objective(part, config, fresh, policy, items)
    make_objective(part, config, trained, policy, items)
    counts = [item.reply.num_drawn if part == "value" else 1 for item in items]
    mean = sum(i.reward * n for i, n in zip(items, counts, strict=True)) / sum(counts)
    assert getattr(fresh, part).bias.item() == pytest.approx(mean)
    assert getattr(trained, part).bias.item() == bias


def test_a_reward_learns_the_sum_where_tokens_were_scored(policy: Policy):
    config = make_config("reward", "regression")
    items = [RolloutItem(FINISHED, None, (1.0, 0.5, -3.0)), RolloutItem(CUT, 2.0)]
    objective = make_objective("reward", config, make_head(config, policy), policy, items)
    assert objective.collate(items)["target"].tolist() == [-1.5, 2.0]


def test_a_distributional_value_needs_bins(policy: Policy):
    head = make_head(make_config("value", "monte_carlo"), policy)
    with pytest.raises(HeadError, match="needs a value with bins"):
        make_objective("value", make_config("value", "distributional"), head, policy, [])


TOKEN, OTHER, LENGTH = 8, 9, 12


def counted(seed: int, number: int) -> list[RolloutItem]:
    """Replies of coin flips, worth as many as came up heads."""
    flips = torch.randint(TOKEN, OTHER + 1, (number, LENGTH), generator=torch.Generator().manual_seed(seed))
    return [
        RolloutItem(EncodedReply((6,), (*flip, 3), is_cut=True), float(flip.count(TOKEN)))
        for flip in flips.tolist()
    ]


def last_token_alone(
    replies: Sequence[EncodedReply], positions: object
) -> Iterator[tuple[int, torch.Tensor]]:
    """h that says which token was written last, and nothing of those before."""
    for index, reply in enumerate(replies):
        last = torch.tensor([*reply.prompt_ids[-1:], *reply.reply_ids])
        yield index, F.one_hot(last, 32).float()


@pytest.mark.parametrize("form", ["linear", "mlp", "mean", "gru"])
def test_a_value_that_remembers_counts_what_was_written_and_no_other_can(form: str, policy: Policy):
    """Of the count's variance at s_11, 12 · ¼, what was written is 11 · ¼, and the last token ¼."""
    config = make_config("value", "monte_carlo", form)
    config = dataclasses.replace(config, value=dataclasses.replace(config.value, width=16, units=8))
    features = FeatureCache(policy, last_token_alone, show_progress=False)
    torch.manual_seed(0)
    head = Head(Parts(value=config.value.part()), 32, policy.identity.vocab_size)
    objective = ReturnValue(head, config, features)
    train, judge = counted(1, 256), counted(2, 64)
    objective.prepare(train)
    optimiser, batch = torch.optim.Adam(objective.parameters(), lr=0.02), objective.collate(train)
    for _ in range(120):
        optimiser.zero_grad()
        scores, _ = objective(**batch)
        (scores["values"] - scores["returns"]).square().mean().backward()
        optimiser.step()
    with torch.no_grad():
        scores, _ = objective(**objective.collate(judge))
    error = (scores["values"] - scores["returns"])[:, -1].square().mean()
    explained = 1 - error / scores["returns"][:, -1].var()
    assert explained > 0.8 if form in REMEMBERING else explained < 0.3


def test_a_value_that_remembers_refuses_features_of_some_positions_and_a_distilled_advantage(policy: Policy):
    config, items = make_config("value", "monte_carlo", "gru"), make_items("rollouts")

    class Sampled(FeatureCache):
        def get(self, replies: Sequence[EncodedReply]) -> list[torch.Tensor]:
            raise DataError("holds only sampled positions")

    objective = ReturnValue(make_head(config, policy), config, Sampled(policy, show_progress=False))
    with pytest.raises(DataError, match="only sampled positions"):
        objective.collate(items)
    config = dataclasses.replace(make_config("advantage", "distil"), value=config.value)
    with pytest.raises(DataError, match=r"distil reads the value at candidates.*--value.form mlp"):
        make_objective("advantage", config, make_head(config, policy), policy, items)
