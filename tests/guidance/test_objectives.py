from __future__ import annotations

from pathlib import Path

import pytest
import torch

from trimtab.guidance.head import Head
from trimtab.guidance.losses import LOSSES
from trimtab.guidance.manifest import ADVANTAGE_FORMS, SCALAR_FORMS, AdvantagePart, Parts, ScalarPart
from trimtab.guidance.objectives import (
    AdvantageObjective,
    ReplyFeatures,
    RewardObjective,
    ValueObjective,
    lay_out,
)
from trimtab.guidance.policy import Policy, load_policy

D, V = 32, 27


@pytest.fixture(scope="module")
def policy(policy_folder: Path) -> Policy:
    return load_policy(policy_folder)


def reply(length: int, seed: int) -> ReplyFeatures:
    generator = torch.Generator().manual_seed(seed)
    h = torch.randn(length + 1, D, generator=generator)
    return ReplyFeatures(h, torch.randint(V, (length,), generator=generator))


PAIRS = [(reply(3, 0), reply(5, 1)), (reply(1, 2), reply(4, 3))]


def randomised(head: Head) -> Head:
    torch.manual_seed(5)
    for parameter in head.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return head


def test_replies_are_laid_end_to_end_chosen_first_without_their_last_state():
    batch = AdvantageObjective.collate(PAIRS)
    assert batch["lengths"].tolist() == [3, 1, 5, 4]
    assert torch.equal(batch["h"][:3], PAIRS[0][0].h[:3])
    assert torch.equal(batch["h"][9:], PAIRS[1][1].h[:4])
    assert torch.equal(batch["tokens"][3:4], PAIRS[1][0].tokens)


@pytest.mark.parametrize("form", ADVANTAGE_FORMS)
def test_the_ratio_of_a_reply_is_that_of_its_tilted_and_plain_probability(form: str, policy: Policy):
    head = randomised(Head(Parts(AdvantagePart(form, 4)), D, V))
    scores, metrics = AdvantageObjective(head.advantage, policy)(**AdvantageObjective.collate(PAIRS))
    logps = []
    for index, side in enumerate(("chosen", "rejected")):
        for row, pair in enumerate(PAIRS):
            h, tokens = pair[index].h[:-1], pair[index].tokens
            base = policy.logits(h)
            tilt = (base + head.advantage(h, policy.lm_head)).log_softmax(-1)
            picked = torch.arange(len(tokens)), tokens
            want = (tilt[picked] - base.log_softmax(-1)[picked]).sum()
            torch.testing.assert_close(scores[side][row], want)
            logps.append(tilt[picked].sum())
    torch.testing.assert_close(metrics["logps/chosen"], (logps[0] + logps[1]) / 2)
    torch.testing.assert_close(metrics["logps/rejected"], (logps[2] + logps[3]) / 2)


def test_rewards_are_read_after_the_last_token_and_values_before_each():
    head = randomised(Head(Parts(value=ScalarPart("mlp", 3), reward=ScalarPart("linear")), D, V))
    rewards, _ = RewardObjective(head.reward)(**RewardObjective.collate(PAIRS))
    torch.testing.assert_close(rewards["rejected"][1], head.reward(PAIRS[1][1].h[-1]))
    rollouts = [(PAIRS[0][0], 0.5), (PAIRS[1][0], -1.0)]
    values, _ = ValueObjective(head.value)(**ValueObjective.collate(rollouts))
    assert values["returns"].tolist() == [0.5, -1.0]
    assert values["mask"].tolist() == [[True, True, True], [True, False, False]]
    torch.testing.assert_close(values["values"][0], head.value(PAIRS[0][0].h[:3]))
    torch.testing.assert_close(values["values"][1, 0], head.value(PAIRS[1][0].h[0]))


@pytest.mark.parametrize("form", ADVANTAGE_FORMS)
@pytest.mark.parametrize("activation", ["identity", "silu"])
def test_every_parameter_of_an_advantage_receives_gradient(form: str, activation: str, policy: Policy):
    head = randomised(Head(Parts(AdvantagePart(form, 4, activation)), D, V))
    scores, _ = AdvantageObjective(head.advantage, policy)(**AdvantageObjective.collate(PAIRS))
    LOSSES["advantage"]["dpo"](**scores).per_example.sum().backward()
    for name, parameter in head.named_parameters():
        assert parameter.grad is not None, name
        assert (parameter.grad != 0).all(), name


@pytest.mark.parametrize("form", SCALAR_FORMS)
def test_every_parameter_of_a_reward_and_a_value_receives_gradient(form: str):
    head = randomised(Head(Parts(value=ScalarPart(form, 3), reward=ScalarPart(form, 3)), D, V))
    rewards, _ = RewardObjective(head.reward)(**RewardObjective.collate(PAIRS))
    values, _ = ValueObjective(head.value)(**ValueObjective.collate([(PAIRS[0][0], 0.5)]))
    losses = (LOSSES["reward"]["bradley_terry"](**rewards), LOSSES["value"]["monte_carlo"](**values))
    sum(loss.per_example.sum() for loss in losses).backward()
    for name, parameter in head.named_parameters():
        assert parameter.grad is not None, name
        assert (parameter.grad != 0).all(), name


def test_an_objective_trains_the_head_and_never_the_policy(policy: Policy):
    head = Head(Parts(AdvantagePart(rank=4)), D, V)
    trained = {name for name, _ in AdvantageObjective(head.advantage, policy).named_parameters()}
    assert trained == {"part.down", "part.up"}


def test_dpo_finds_the_tilt_that_the_labels_were_drawn_from(policy: Policy):
    """Replies of one token after one state, preferred by Bradley-Terry odds σ(r(a) − r(b)): the optimum is
    π ∝ π₀ e^{r/τ}, so π(a)/π(b) = π₀(a)/π₀(b) · e^{(r(a) − r(b))/τ}."""
    tau, rewards = 0.5, {6: 0.0, 7: 0.4, 8: -0.6}
    h = torch.randn(2, D, generator=torch.Generator().manual_seed(0))
    one = {token: ReplyFeatures(h, torch.tensor([token])) for token in rewards}
    pairs = [(one[a], one[b]) for a in rewards for b in rewards if a != b]
    odds = torch.tensor([rewards[a] - rewards[b] for a in rewards for b in rewards if a != b]).sigmoid()

    torch.manual_seed(0)
    head = Head(Parts(AdvantagePart("lowrank", 2, "identity")), D, V)
    objective = AdvantageObjective(head.advantage, policy)
    optimiser = torch.optim.Adam(head.parameters(), lr=0.03)
    batch = AdvantageObjective.collate(pairs)
    for _ in range(400):
        optimiser.zero_grad()
        loss = (odds * LOSSES["advantage"]["dpo"](**objective(**batch)[0], tau=tau).per_example).sum()
        loss.backward()
        optimiser.step()

    base = policy.logits(h[:1])[0]
    tilt = (base + head.advantage(h[:1], policy.lm_head)[0]).detach()
    tokens = list(rewards)
    gain = (tilt - base)[tokens] - (tilt - base)[tokens[0]]
    assert gain.tolist() == pytest.approx([reward / tau for reward in rewards.values()], abs=0.01)


def test_lay_out_keeps_every_position_once():
    batch = lay_out([side for pair in PAIRS for side in pair])
    assert len(batch["h"]) == len(batch["tokens"]) == batch["lengths"].sum() == 13
