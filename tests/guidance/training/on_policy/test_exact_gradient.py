"""Gradients on a policy of two tokens, over all of its replies, against those of E[score] − τ KL itself.

A reply is (0), (1, 0) or (1, 1): token 0 ends it, and so does its length.
"""

from __future__ import annotations

import itertools
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from trimtab.guidance.heads.forms import Head
from trimtab.guidance.heads.manifest import AdvantagePart, Parts
from trimtab.guidance.losses import vocabulary_tiles
from trimtab.guidance.losses.credit import Credit, Scored
from trimtab.guidance.losses.policy_gradient import PROMPTS
from trimtab.guidance.training.config import AdvantageConfig, TrainConfig
from trimtab.guidance.training.methods import METHODS
from trimtab.guidance.training.objectives.on_policy import Experience, Iteration, PolicyObjective
from trimtab.guidance.training.objectives.tilt import tilt_terms

REPLIES = [(0,), (1, 0), (1, 1)]
REWARDS = [[1.0], [0.5, -1.0], [0.5, 2.0]]  # that of a token depends on no later one
TAU, LM_HEAD = 0.7, torch.tensor([[0.3, -0.6], [-0.2, 0.9]])
LENGTHS = torch.tensor([1, 2, 2])
MASK = torch.tensor([[True, False], [True, True], [True, True]])


@pytest.fixture
def objective(request: pytest.FixtureRequest) -> PolicyObjective:
    return make_objective(request.param)


def make_objective(loss: str) -> PolicyObjective:
    torch.manual_seed(0)
    head = Head(Parts(AdvantagePart("lowrank", 3, "silu")), hidden_size=2, vocab_size=2)
    torch.nn.init.normal_(head.advantage.up)
    policy: Any = SimpleNamespace(
        lm_head=LM_HEAD,
        device=torch.device("cpu"),
        identity=SimpleNamespace(hidden_size=2),
        write_logits=lambda h, out: torch.mm(h, LM_HEAD.T, out=out),
    )
    config = TrainConfig(
        name="t",
        model="t",
        head_folder=Path("h"),
        run_folder=Path("r"),
        advantage=AdvantageConfig(loss=loss, tau=TAU),
    )
    return METHODS["advantage"][loss].objective(head, config, SimpleNamespace(policy=policy))


def states(reply: tuple[int, ...]) -> Tensor:
    """h before each token: the prompt's, then that after token 1."""
    return torch.eye(2)[: len(reply)]


def probabilities(objective: PolicyObjective) -> tuple[Tensor, Tensor]:
    """π of each reply and its KL from the policy Σ_y π(y) log π(y)/π₀(y), with gradient."""
    log_tilt = log_base = torch.zeros(3)
    for index, reply in enumerate(REPLIES):
        h, tokens = states(reply), torch.tensor(reply)
        base = (h @ LM_HEAD.T).log_softmax(-1)
        tilt = (h @ LM_HEAD.T + objective.tilt.advantage(h, LM_HEAD)).log_softmax(-1)
        one = torch.eye(3)[index]
        log_tilt = log_tilt + one * tilt.gather(1, tokens[:, None]).sum()
        log_base = log_base + one * base.gather(1, tokens[:, None]).sum()
    return log_tilt.exp(), (log_tilt.exp() * (log_tilt - log_base)).sum()


def wanted_gradient(objective: PolicyObjective) -> list[Tensor]:
    probability, kl = probabilities(objective)
    score = (probability * torch.tensor([sum(row) for row in REWARDS])).sum()
    return list(torch.autograd.grad(score - TAU * kl, list(objective.tilt.parameters())))


def credit_of(objective: PolicyObjective, estimate: str, group: Tensor | None = None) -> Credit:
    loss = objective.config.advantage.loss
    with torch.no_grad():
        terms = [tilt_terms(objective.tilt, states(r), torch.tensor(r)) for r in REPLIES]
    kl = [term.kl if estimate == "exact" else term.log_ratio for term in terms]
    return PROMPTS[loss].credit(
        Scored(
            rewards=pad_sequence([torch.tensor(row) for row in REWARDS], batch_first=True),
            kl=pad_sequence(kl, batch_first=True),
            values=torch.zeros(3, 2),
            mask=MASK,
            group=torch.zeros(3, dtype=torch.long) if group is None else group,
            is_dense=loss != "rloo",
            is_exact=estimate == "exact",
            tau=TAU,
            discount=1.0,
            lam=1.0,
        )
    )


def losses(objective: PolicyObjective, credit: Credit, estimate: str) -> Tensor:
    """Of each reply, [3]."""
    objective.iteration = Iteration(kl_weight=credit.kl_weight if estimate == "exact" else 0.0)
    with torch.no_grad():
        ratios = [tilt_terms(objective.tilt, states(r), torch.tensor(r)).log_ratio for r in REPLIES]
    experiences = [
        Experience(states(r), torch.tensor(r), ratio, torch.zeros(len(r)), *columns)
        for r, ratio, *columns in zip(
            REPLIES,
            ratios,
            credit.advantages[MASK].split(LENGTHS.tolist()),
            credit.returns[MASK].split(LENGTHS.tolist()),
            strict=True,
        )
    ]
    method = METHODS["advantage"][objective.config.advantage.loss]
    scores, _ = objective(**objective.collate(experiences))
    return method.loss.bind(objective.config.advantage)(**scores).per_example


def check(objective: PolicyObjective, loss: Tensor, factor: float = 1.0) -> None:
    """loss: its expectation under π, whose gradient is to be −factor times that of the objective itself."""
    found = torch.autograd.grad(loss, list(objective.tilt.parameters()))
    for mine, wanted in zip(found, wanted_gradient(objective), strict=True):
        torch.testing.assert_close(mine, -factor * wanted, rtol=1e-4, atol=1e-6)
        assert wanted.abs().max() > 1e-3


@pytest.mark.parametrize("estimate", ["exact", "sampled"])
@pytest.mark.parametrize("objective", ["reinforce"], indirect=True)
def test_reinforce_follows_the_score_less_the_kl(objective: PolicyObjective, estimate: str):
    probability = probabilities(objective)[0].detach()
    value_free = losses(objective, credit_of(objective, estimate), estimate)
    check(objective, (probability * value_free).sum())


@pytest.mark.parametrize("estimate", ["exact", "sampled"])
@pytest.mark.parametrize("objective", ["ppo"], indirect=True)
def test_ppo_at_ratio_one_follows_the_score_less_the_kl_in_units_of_its_whitening(
    objective: PolicyObjective, estimate: str
):
    """Per token of the batch, 5 in 3 replies, and by the spread of the advantages: 3/5/spread."""
    credit = credit_of(objective, estimate)
    unit = 3 / 5 * credit.kl_weight / TAU
    probability = probabilities(objective)[0].detach()
    check(objective, (probability * losses(objective, credit, estimate)).sum(), unit)


@pytest.mark.parametrize("estimate", ["exact", "sampled"])
@pytest.mark.parametrize("objective", ["rloo"], indirect=True)
def test_rloo_follows_the_score_less_the_kl_over_all_pairs_of_replies(
    objective: PolicyObjective, estimate: str
):
    """Of a pair (i, j) reply i is compared with j and j with i."""
    probability = probabilities(objective)[0].detach()
    own = credit_of(objective, estimate)  # of all three: A_i = R_i − (R_j + R_k)/2
    total = (own.returns * MASK)[:, 0]
    expected = torch.zeros(())
    for i, j in itertools.product(range(3), repeat=2):
        advantages = MASK * (total - total[j])[:, None]
        loss = losses(objective, Credit(advantages, own.returns, own.kl_weight), estimate)
        expected = expected + probability[i] * probability[j] * loss[i]
    check(objective, expected)
    torch.testing.assert_close(own.advantages[:, 0], 1.5 * (total - total.mean()))


@pytest.mark.parametrize("objective", ["ppo", "reinforce", "grpo", "rloo"], indirect=True)
def test_terms_over_the_vocabulary_are_those_of_the_distributions(objective: PolicyObjective):
    """π₀ = softmax(z), π = softmax(z + A), each written out."""
    h, tokens = torch.randn(600, 2), torch.randint(2, (600,))  # more rows than are taken at once
    terms = tilt_terms(objective.tilt, h, tokens)
    base = (h @ LM_HEAD.T).softmax(-1)
    tilt = (h @ LM_HEAD.T + objective.tilt.advantage(h, LM_HEAD)).softmax(-1)
    ratio = (tilt / base).log()
    torch.testing.assert_close(terms.log_ratio, ratio.gather(1, tokens[:, None])[:, 0])
    torch.testing.assert_close(terms.kl, (tilt * ratio).sum(-1), atol=1e-6, rtol=1e-4)
    torch.testing.assert_close(terms.entropy, -(tilt * tilt.log()).sum(-1))


@pytest.mark.parametrize("objective", ["ppo", "rloo"], indirect=True)
def test_gradients_of_terms_over_the_vocabulary_are_those_of_autograd(
    objective: PolicyObjective, monkeypatch: pytest.MonkeyPatch
):
    """Of each alone and of all together, of more rows than are taken at once."""
    monkeypatch.setattr(vocabulary_tiles, "TILE_BYTES", 4 * 4 * len(LM_HEAD))
    h, tokens = torch.randn(9, 2), torch.randint(2, (9,))
    weights = torch.randn(3, 9)
    parameters = list(objective.tilt.parameters())
    terms = tilt_terms(objective.tilt, h, tokens)
    z = h.double() @ LM_HEAD.T.double()
    base = z.log_softmax(-1)
    tilt = (z + objective.tilt.advantage(h, LM_HEAD).double()).log_softmax(-1)
    ratio, probability = tilt - base, tilt.exp()
    plain = (
        ratio.gather(1, tokens[:, None])[:, 0],
        (probability * ratio).sum(-1),
        -(probability * tilt).sum(-1),
    )
    for kept in ((0,), (1,), (2,), (0, 1, 2)):
        got = sum((terms[i] * weights[i]).sum() for i in kept)
        wanted = sum((plain[i] * weights[i]).sum() for i in kept)
        torch.testing.assert_close(
            torch.autograd.grad(got, parameters, retain_graph=True),
            torch.autograd.grad(wanted, parameters, retain_graph=True),
            rtol=1e-4,
            atol=1e-5,
        )
