from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from method_cases import EOS, losses_of, make_config, make_head, make_items, make_objective
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

from trimtab.guidance.data.items import PairItem
from trimtab.guidance.features.source import FeatureCache, StreamedFeatures
from trimtab.guidance.heads.manifest import ADVANTAGE_FORMS
from trimtab.guidance.losses.reward import ranked
from trimtab.guidance.policy import Policy, as_policy, load_policy
from trimtab.guidance.text.encoding import EncodedReply
from trimtab.guidance.training.methods import METHODS
from trimtab.guidance.training.objectives.pairs import PairAdvantage, PairReward


@pytest.fixture(scope="module")
def policy(policy_folder: Path) -> Policy:
    return load_policy(policy_folder)


@pytest.mark.parametrize("form", ADVANTAGE_FORMS)
def test_the_ratio_of_a_reply_is_that_of_its_tilted_and_plain_probability(form: str, policy: Policy):
    config, items = make_config("advantage", "simpo", form), make_items("pairs", 3, cut=True)
    head = make_head(config, policy)
    scores, metrics = make_objective("advantage", config, head, policy, items)(
        **make_objective("advantage", config, head, policy, items).collate(items)
    )
    logps = {"chosen": [], "rejected": []}
    for row, item in enumerate(items):
        for side in ("chosen", "rejected"):
            reply: EncodedReply = getattr(item, side)
            tokens = torch.tensor(reply.reply_ids[: reply.num_drawn])
            (h,) = FeatureCache(policy, show_progress=False).get([reply])
            h = h[: len(tokens)]
            plain = policy.logits(h)
            tilt = (plain + head.advantage(h, policy.lm_head)).log_softmax(-1)
            picked = torch.arange(len(tokens)), tokens
            base = plain.log_softmax(-1)[picked].sum()
            torch.testing.assert_close(scores[side][row], tilt[picked].sum() - base)
            torch.testing.assert_close(scores[f"{side}_base"][row], base)
            assert scores[f"{side}_length"][row] == len(tokens)
            logps[side].append(tilt[picked].sum())
    for side, numbers in logps.items():
        torch.testing.assert_close(metrics[f"logps/{side}"], torch.stack(numbers).mean())


@pytest.mark.parametrize("loss", ["dpo", "conservative_dpo", "robust_dpo", "ipo", "simpo"])
def test_every_preference_method_logs_what_tells_a_healthy_run(loss: str, policy: Policy):
    config, items = make_config("advantage", loss), make_items("pairs")
    objective = make_objective("advantage", config, make_head(config, policy), policy, items)
    scores, metrics = objective(**objective.collate(items))
    metrics |= METHODS["advantage"][loss].loss.bind(config.advantage)(**scores).metrics | objective.figures()
    sides = {f"{name}/{side}" for name in ("rewards", "logps", "length") for side in ("chosen", "rejected")}
    assert sides | {"rewards/margins", "rewards/accuracies", "entropy", "kl", "flip_rate"} <= metrics.keys()
    assert all(metric.isfinite() and not metric.requires_grad for metric in metrics.values())


def test_dpo_finds_the_tilt_that_the_labels_were_drawn_from(policy: Policy):
    """Replies of one token after one state, preferred by Bradley-Terry odds σ(r(a) − r(b)): the optimum is
    π ∝ π₀ e^{r/τ}, so π(a)/π(b) = π₀(a)/π₀(b) · e^{(r(a) − r(b))/τ}."""
    tau, rewards = 0.5, {6: 0.0, 7: 0.4, 8: -0.6}
    one = {token: EncodedReply((9, 10), (token, EOS), is_cut=True) for token in rewards}
    items = [PairItem(one[a], one[b]) for a in rewards for b in rewards if a != b]
    odds = torch.tensor([rewards[a] - rewards[b] for a in rewards for b in rewards if a != b]).sigmoid()

    config = make_config("advantage", "dpo", "lowrank")
    config = dataclasses.replace(config, advantage=dataclasses.replace(config.advantage, tau=tau))
    head = make_head(config, policy, untrained="advantage")
    objective = make_objective("advantage", config, head, policy, items)
    optimiser = torch.optim.Adam(objective.parameters(), lr=0.03)
    for _ in range(300):
        optimiser.zero_grad()
        (odds * losses_of("advantage", config, objective, items)).sum().backward()
        optimiser.step()

    (h, _, _), *_ = FeatureCache(policy, show_progress=False).get([one[6]])
    gain = head.advantage(h[None], policy.lm_head)[0].detach()[list(rewards)]
    assert (gain - gain[0]).tolist() == pytest.approx([r / tau for r in rewards.values()], abs=0.01)


def test_a_rows_own_margin_adds_to_the_configured_one(policy: Policy):
    config, items = make_config("reward", "bradley_terry"), make_items("pairs", 3)
    objective = make_objective("reward", config, make_head(config, policy), policy, items)
    scores, _ = objective(**objective.collate(items))
    assert scores["margin"].tolist() == pytest.approx([0.2, 0.3, 0.4])


def test_a_reward_does_not_change_with_padding_batch_or_a_pad_token_that_ends_replies(
    build_model: Callable[..., LlamaForCausalLM], build_tokenizer: Callable[..., PreTrainedTokenizerFast]
):
    """Against the model's own forward of each reply alone, padded on the left with the end token."""
    tokenizer = build_tokenizer()
    tokenizer.pad_token_id = EOS
    policy = as_policy(build_model(pad_token_id=EOS), tokenizer, name="tiny")
    config, items = make_config("reward", "bradley_terry"), make_items("pairs", 5)
    long = EncodedReply((6, EOS, 7), (EOS, 8, EOS, 9, 10, 11, EOS))  # ends within what is read
    items.append(PairItem(long, items[0].chosen))
    head = make_head(config, policy)
    for source in (
        FeatureCache(policy, batch_tokens=1, show_progress=False),
        FeatureCache(policy, batch_tokens=10_000, show_progress=False),
        StreamedFeatures(policy, batch_tokens=30),
    ):
        objective = PairReward(head, config, source)
        for some in (items, items[::-1], items[2:3]):
            scores, _ = objective(**objective.collate(some))
            want = torch.stack([_reward_alone(policy, head, item.chosen) for item in some])
            torch.testing.assert_close(scores["chosen"], want, rtol=1e-4, atol=1e-5)


@torch.no_grad()
def _reward_alone(policy: Policy, head: torch.nn.Module, reply: EncodedReply) -> torch.Tensor:
    ids = reply.prompt_ids + reply.reply_ids
    mask = torch.tensor([[0] * 4 + [1] * len(ids)])
    out = policy.model.model(
        input_ids=torch.tensor([(EOS,) * 4 + ids]),
        attention_mask=mask,
        position_ids=(mask.cumsum(1) - 1).clamp(min=0),
    )
    return head.reward(out.last_hidden_state[0, -1])


def test_an_objective_holds_the_parameters_of_its_part_alone(policy: Policy):
    config = make_config("advantage", "dpo")
    features = FeatureCache(policy, show_progress=False)
    objective = PairAdvantage(make_head(config, policy), config, features)
    assert {name for name, _ in objective.named_parameters()} == {
        "tilt.advantage.down",
        "tilt.advantage.up",
    }


def test_ranks_may_be_any_numbers_and_prompts_stay_apart(policy: Policy):
    config, items = make_config("reward", "ranked"), make_items("rankings", 3)
    objective = make_objective("reward", config, make_head(config, policy), policy, items)
    scores, _ = objective(**objective.collate(items))
    assert scores["group"].tolist() == [0, 0, 0, 1, 1, 1, 2, 2, 2]
    assert scores["rank"].tolist() == [1, 0, 1] * 3
    one = ranked(**scores).per_example[1]
    r = scores["scores"][3:6]
    want = -torch.nn.functional.logsigmoid(torch.stack([r[1] - r[0], r[1] - r[2]])).mean()
    torch.testing.assert_close(one, want)
