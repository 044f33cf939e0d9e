from __future__ import annotations

import dataclasses
from collections.abc import Callable

import pytest
import torch
from method_cases import EOS, losses_of, make_config, make_head, make_items, make_objective
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

from trimtab.guidance.errors import DataError
from trimtab.guidance.features.source import FeatureCache
from trimtab.guidance.policy import Policy, as_policy
from trimtab.guidance.text.encoding import EncodedReply

V = 27


@pytest.fixture
def policy(
    build_model: Callable[..., LlamaForCausalLM], build_tokenizer: Callable[..., PreTrainedTokenizerFast]
) -> Policy:
    """One that does not attend: h is a function of the last token alone."""
    model = build_model()
    with torch.no_grad():
        for layer in model.model.layers:
            layer.self_attn.o_proj.weight.zero_()
    return as_policy(model, build_tokenizer(), name="tiny")


def h_of_tokens(policy: Policy) -> torch.Tensor:
    """h after each token of the vocabulary, [V, d]."""
    features = FeatureCache(policy, show_progress=False)
    return torch.stack([h[0] for h in features.get([EncodedReply((token,), (EOS,)) for token in range(V)])])


def test_the_order_of_candidates_is_that_of_a_teacher_who_knows_the_appended_token(policy: Policy):
    """A prefix is worth sin(3a) of its last token a, so Q(s, a) = sin(3a) after any prefix."""
    config = make_config("advantage", "distil", "lowrank")
    config = dataclasses.replace(config, advantage=dataclasses.replace(config.advantage, rank=16, top_k=8))
    config = dataclasses.replace(config, value=dataclasses.replace(config.value, form="linear"))
    head = make_head(config, policy, untrained="advantage")
    scores = (3 * torch.arange(V)).sin()
    with torch.no_grad():
        head.value.bias.zero_()
        head.value.weight.copy_(torch.linalg.lstsq(h_of_tokens(policy), scores[:, None]).solution[:, 0])
    head.reward = None
    items = make_items("rollouts", 12)
    objective = make_objective("advantage", config, head, policy, items)
    optimiser = torch.optim.Adam(objective.parameters(), lr=0.03)
    for _ in range(300):
        optimiser.zero_grad()
        (100 * losses_of("advantage", config, objective, items).mean()).backward()
        optimiser.step()

    batch = objective.collate(items)
    judged = batch["weight"] > 0
    torch.testing.assert_close(batch["target"][judged], scores[batch["tokens"]][judged], rtol=0, atol=1e-3)
    advantage = head.advantage(batch["h"], policy.lm_head).gather(1, batch["tokens"]).detach()
    for row, kept in enumerate(judged):
        assert advantage[row][kept].argsort().tolist() == batch["target"][row][kept].argsort().tolist()
    _, metrics = objective(**batch)
    assert 0 < objective.figures()["flip_rate"] <= 1
    assert 0 < metrics["teacher/flip_rate"] <= 1


@pytest.mark.parametrize("has_reward", [True, False])
def test_the_reward_judges_the_end_of_a_reply_and_without_one_nobody_does(has_reward: bool, policy: Policy):
    config = make_config("advantage", "distil")
    config = dataclasses.replace(config, advantage=dataclasses.replace(config.advantage, top_k=V))
    head, items = make_head(config, policy), make_items("rollouts", 4)
    ends = torch.tensor(policy.end_ids)  # the model's, and the chat template's
    assert len(ends) == 2 and EOS in ends
    after_end = head.reward(h_of_tokens(policy))
    head.reward = head.reward if has_reward else None
    batch = make_objective("advantage", config, head, policy, items).collate(items)
    is_end = torch.isin(batch["tokens"], ends)
    assert (is_end.sum(1) == 2).all()
    assert torch.equal(batch["weight"] == 0, is_end & (not has_reward))
    if has_reward:
        want = after_end[batch["tokens"][is_end]]
        torch.testing.assert_close(batch["target"][is_end], want, rtol=1e-4, atol=1e-5)


def test_the_same_prefixes_are_drawn_whatever_else_is_there(policy: Policy):
    config, items = make_config("advantage", "distil"), make_items("rollouts", 6)
    head = make_head(config, policy)
    alone, among = (
        make_objective("advantage", config, head, policy, some).collate(items[2:3])
        for some in (items[2:3], items)
    )
    torch.testing.assert_close(alone["h"], among["h"])
    assert len(alone["h"]) == min(3, items[2].reply.num_drawn)


def test_rewards_of_tokens_are_refused(policy: Policy):
    config, (item, *_) = make_config("advantage", "distil"), make_items("rollouts", 1)
    scored = dataclasses.replace(item, token_rewards=(0.0,) * item.reply.num_drawn)
    with pytest.raises(DataError, match="token_rewards"):
        make_objective("advantage", config, make_head(config, policy), policy, [scored])
    config = dataclasses.replace(config, reward_from="head")  # which replaces them for the value
    make_objective("advantage", config, make_head(config, policy), policy, [scored])
