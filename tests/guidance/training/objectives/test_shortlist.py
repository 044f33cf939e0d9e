"""Shortlists of next tokens, that stand for the vocabulary where an advantage learns from replies."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path

import pytest
import torch
from method_cases import make_config, make_head, make_items

from trimtab.guidance.errors import DataError
from trimtab.guidance.features.source import FeatureCache
from trimtab.guidance.losses.common import sum_by_reply
from trimtab.guidance.losses.fused_log_ratio import fused_log_ratio
from trimtab.guidance.policy import Policy, load_policy
from trimtab.guidance.training.config import AdvantageConfig
from trimtab.guidance.training.methods import METHODS
from trimtab.guidance.training.objectives import shortlist
from trimtab.guidance.training.objectives.shortlist import Shortlists, make_shortlist, shortlist_log_ratio


@pytest.fixture(scope="module")
def policy(policy_folder: Path) -> Policy:
    return load_policy(policy_folder)


def test_by_hand():
    """See the docstring of shortlist_log_ratio."""
    column = torch.tensor([[math.log(3)]], requires_grad=True)
    vocabulary = torch.tensor([[1.0], [0.0]], requires_grad=True)
    log_weight = torch.tensor([[0.5, 0.5]]).log()
    rho = shortlist_log_ratio(column, vocabulary, torch.tensor([0]), torch.tensor([[1, 0]]), log_weight)
    rho.sum().backward()
    assert rho.item() == pytest.approx(0.4054651)
    assert column.grad.item() == pytest.approx(0.25)
    assert vocabulary.grad.flatten().tolist() == pytest.approx([0.2746531, -0.2746531])


def test_a_list_of_all_tokens_is_the_vocabulary_with_its_gradient(monkeypatch):
    monkeypatch.setattr(shortlist, "_ROWS", 4)
    generator = torch.Generator().manual_seed(0)
    h, lm_head, column, vocabulary, weight = (
        torch.randn(*shape, generator=generator) for shape in ((9, 5), (11, 5), (9, 3), (11, 3), (9,))
    )
    tokens = torch.arange(9)
    found = []
    for of_list in (True, False):
        c, u = column.clone().requires_grad_(), vocabulary.clone().requires_grad_()
        if of_list:
            listed = torch.randperm(11, generator=generator).expand(9, -1)
            log_weight = (h @ lm_head.T).log_softmax(1).gather(1, listed)
            rho = shortlist_log_ratio(c, u, tokens, listed, log_weight)
        else:
            rho = fused_log_ratio(lambda h, out: torch.mm(h, lm_head.T, out=out), h, c, u, tokens).log_ratio
        (rho * weight).sum().backward()
        found.append((rho.detach(), c.grad, u.grad))
    for ours, exact in zip(*found, strict=True):
        torch.testing.assert_close(ours, exact, rtol=1e-5, atol=1e-6)


def test_the_likeliest_are_exact_and_the_drawn_stand_for_the_others_without_bias():
    z = (3 * torch.randn(40, generator=torch.Generator().manual_seed(1))).expand(4000, -1)
    tokens = torch.arange(4000) % 40
    made = make_shortlist(lambda h, out: out.copy_(h), z, tokens, 40, 8, torch.Generator().manual_seed(2))
    probability, numbers = z[0].softmax(0), torch.randn(40, generator=torch.Generator().manual_seed(3)).exp()
    top = probability.topk(4)
    assert (made.listed[:, :4] == top.indices).all()
    assert not torch.isin(made.listed[:, 4:], top.indices).any()
    torch.testing.assert_close(made.log_weight[:, :4].exp(), top.values.expand(4000, -1))
    torch.testing.assert_close(made.log_weight.logsumexp(1), torch.zeros(4000), atol=1e-5, rtol=0)
    torch.testing.assert_close(made.base, probability.log()[tokens])
    estimates = (made.log_weight.exp() * numbers[made.listed]).sum(1)
    error = estimates.mean() - probability @ numbers
    assert abs(error) < 4 * estimates.std() / 4000**0.5


@pytest.mark.parametrize(("rows", "loss"), [("pairs", "dpo"), ("unpaired", "kto")])
@pytest.mark.parametrize("form", ["tied", "lowrank"])
def test_training_reads_the_list_and_measuring_the_vocabulary(
    rows: str, loss: str, form: str, policy: Policy
):
    exact_config, items = make_config("advantage", loss, form), make_items(rows, 4)
    size = policy.vocab_size - 2
    config = dataclasses.replace(
        exact_config, advantage=dataclasses.replace(exact_config.advantage, shortlist=size)
    )
    head, source = make_head(config, policy), FeatureCache(policy, show_progress=False)
    exact, ours = (
        METHODS["advantage"][loss].objective(head, some, source) for some in (exact_config, config)
    )
    wanted, _ = exact(**exact.collate(items))
    measured, _ = ours(**ours.collate(items))
    assert all(torch.equal(measured[name], wanted[name]) for name in wanted)
    ours.prepare(items)
    batch = ours.collate(items)
    assert "listed" in batch
    trained, _ = ours(**batch)
    scores = head.advantage(batch["h"], policy.lm_head)
    listed = (batch["log_weight"] + scores.gather(1, batch["listed"])).logsumexp(1)
    rho = scores.gather(1, batch["tokens"][:, None])[:, 0] - listed
    names = ("chosen", "rejected") if rows == "pairs" else ("log_ratio",)
    ratio = torch.cat([trained[name] for name in names])
    torch.testing.assert_close(ratio, sum_by_reply(rho, batch["lengths"]), rtol=1e-4, atol=1e-5)


def test_they_are_the_same_when_a_run_resumes_and_end_where_memory_does(policy: Policy, monkeypatch, caplog):
    replies = [reply for item in make_items("pairs", 4) for reply in item.replies]
    source = FeatureCache(policy, show_progress=False)
    first, second = Shortlists(source, 8, seed=0), Shortlists(source, 8, seed=0)
    for lists in (first, second):
        lists.make(replies, show_progress=False)
    assert all(torch.equal(x, second.of(replies)[name]) for name, x in first.of(replies).items())
    monkeypatch.setattr(shortlist, "MAX_BYTES", 0)
    few = Shortlists(source, 8, seed=0)
    few.make(replies, show_progress=False)
    assert few.of(replies) == {}
    assert "trained by the whole vocabulary" in caplog.text


def test_what_makes_no_list_is_refused(policy: Policy):
    source = FeatureCache(policy, show_progress=False)
    assert Shortlists(source, "auto", seed=0).size == 0  # of a small vocabulary
    with pytest.raises(DataError, match=r"advantage\.shortlist=.* vocabulary of .*: give 0"):
        Shortlists(source, policy.vocab_size, seed=0)
    with pytest.raises(ValueError, match="shortlist must be auto, 0 or at least 2, got 1"):
        AdvantageConfig(shortlist=1)
