"""The solved reward against scikit-learn's solvers and stationarity, on features of our making."""

from __future__ import annotations

import dataclasses
import logging
import math
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from sklearn.linear_model import LogisticRegression, Ridge
from torch import Tensor

from trimtab.guidance.data.items import LabelItem, PairItem, RankingItem, RolloutItem
from trimtab.guidance.heads.forms import LinearScalar
from trimtab.guidance.heads.manifest import ScalarPart
from trimtab.guidance.losses.reward import bradley_terry, good_bad, ranked, regression
from trimtab.guidance.text.encoding import EncodedReply
from trimtab.guidance.training.convex_reward import L2_WITHOUT_SIGNAL, Fit, solve_reward
from trimtab.guidance.training.objectives.pairs import LabelReward, PairReward, RankingReward
from trimtab.guidance.training.objectives.rollouts import RolloutReward

WIDTH = 6


class Ends:
    """Features of replies at their end, by a number that stands in the reply."""

    policy = SimpleNamespace(device=torch.device("cpu"))

    def __init__(self, table: Tensor) -> None:
        self.table = table

    def last(self, replies: Sequence[EncodedReply]) -> Tensor:
        return self.table[[reply.reply_ids[0] for reply in replies]]


def reply(number: int, prompt: int | None = None) -> EncodedReply:
    return EncodedReply((number // 2 if prompt is None else prompt,), (number,))


def noise(rows: int, width: int = WIDTH, seed: int = 0) -> Tensor:
    return torch.randn(rows, width, generator=torch.Generator().manual_seed(seed))


def pairs(num: int) -> list[PairItem]:
    return [PairItem(reply(2 * i), reply(2 * i + 1)) for i in range(num)]


def solve(
    objective: type[Any], loss: Any, items: Sequence[Any], table: Tensor, folder: Path, **more: Any
) -> tuple[LinearScalar, Fit]:
    reward = LinearScalar(ScalarPart(), table.shape[1])
    config = SimpleNamespace(reward=SimpleNamespace(margin=0.0))
    made = objective(SimpleNamespace(reward=reward), config, Ends(table))
    settings = {"l2": "auto", "folder": folder, "seed": 0, "resume": False} | more
    return reward, solve_reward(made, reward, loss, items, **settings)


def judged(table: Tensor, weight: Tensor, num: int, sharpness: float = 1.0) -> list[PairItem]:
    """Pairs whose labels are drawn by Bradley–Terry of w · h."""
    margin = sharpness * (table[: 2 * num : 2] - table[1 : 2 * num : 2]) @ weight
    wins = torch.rand(num, generator=torch.Generator().manual_seed(9)) < margin.sigmoid()
    return [
        pair if won else PairItem(pair.rejected, pair.chosen)
        for pair, won in zip(pairs(num), wins.tolist(), strict=True)
    ]


def sides(items: Sequence[PairItem], table: Tensor) -> tuple[Tensor, Tensor]:
    return Ends(table).last([i.chosen for i in items]), Ends(table).last([i.rejected for i in items])


@pytest.mark.parametrize("l2", [1.0, 0.01])
def test_bradley_terry_is_logistic_regression_without_intercept_on_differences(l2: float, tmp_path: Path):
    """scikit-learn minimises C Σ loss + ‖w‖²/2: C = 1/(N l2)."""
    table = noise(400) * torch.arange(1.0, 7.0) + 5
    items = judged(table, torch.ones(WIDTH), 200, 0.3)
    reward, _ = solve(PairReward, partial(bradley_terry, centring=0.0), items, table, tmp_path, l2=l2)
    chosen, rejected = sides(items, table)
    scale = torch.cat([chosen, rejected]).std(0, correction=0)
    difference = ((chosen - rejected) / scale).double()
    sign = torch.tensor([1.0, -1.0]).repeat(100)
    theirs = LogisticRegression(C=1 / (200 * l2), fit_intercept=False, tol=1e-9, max_iter=1000)
    theirs.fit((difference * sign[:, None]).numpy(), sign.numpy())
    torch.testing.assert_close(
        reward.weight.detach().double() * scale, torch.from_numpy(theirs.coef_[0]), rtol=1e-3, atol=1e-4
    )


def test_good_bad_is_logistic_regression(tmp_path: Path):
    table = noise(120)
    labels = (table[:, 0] + noise(120, 1, 3)[:, 0] > 0.3).tolist()
    items = [LabelItem(reply(i), label) for i, label in enumerate(labels)]
    reward, _ = solve(LabelReward, good_bad, items, table, tmp_path, l2=0.05)
    mean, scale = table.mean(0), table.std(0, correction=0)
    theirs = LogisticRegression(C=1 / (120 * 0.05), tol=1e-9, max_iter=1000)
    theirs.fit(((table - mean) / scale).double().numpy(), labels)
    want = torch.from_numpy(theirs.decision_function(((table - mean) / scale).double().numpy()))
    torch.testing.assert_close(reward(table).detach().double(), want, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("unit", [1e-6, 1.0, 1e5])
def test_regression_is_ridge_whatever_the_rewards_are_measured_in(unit: float, tmp_path: Path):
    table = noise(60) * 3 - 1
    target = unit * (table[:, 1] + noise(60, 1, 4)[:, 0] + 2)
    items = [RolloutItem(reply(i), reward=value) for i, value in enumerate(target.tolist())]
    reward, _ = solve(RolloutReward, regression, items, table, tmp_path, l2=0.1)
    standard = ((table - table.mean(0)) / table.std(0, correction=0)).double().numpy()
    theirs = Ridge(alpha=60 * 0.1).fit(standard, target.double().numpy())
    want = torch.from_numpy(theirs.predict(standard))
    torch.testing.assert_close(reward(table).detach().double() / unit, want / unit, rtol=1e-3, atol=1e-3)


def test_margins_and_centring_are_part_of_the_problem(tmp_path: Path):
    """At the solution no direction lowers loss + penalty: the features have deviation 1 and mean 0."""
    table = noise(80)
    table = (table - table.mean(0)) / table.std(0, correction=0)
    items = [dataclasses.replace(item, margin=i % 3 / 2) for i, item in enumerate(pairs(40))]
    loss = partial(bradley_terry, centring=0.2)
    reward, _ = solve(PairReward, loss, items, table, tmp_path, l2=0.1)
    chosen, rejected = (reward(side) for side in sides(items, table))
    margin = torch.tensor([item.margin for item in items])
    value = loss(chosen, rejected, margin=margin).per_example.mean() + 0.05 * reward.weight.square().sum()
    for slope in torch.autograd.grad(value, list(reward.parameters())):
        torch.testing.assert_close(slope, torch.zeros_like(slope), rtol=0, atol=1e-6)
    plain, _ = solve(PairReward, partial(bradley_terry, centring=0.0), pairs(40), table, tmp_path, l2=0.1)
    assert not torch.allclose(plain.weight, reward.weight, rtol=0.1)


def test_rankings_of_two_are_pairs(tmp_path: Path):
    table = noise(100)
    items = judged(table, torch.ones(WIDTH), 50)
    of_pairs, _ = solve(PairReward, partial(bradley_terry, centring=0.0), items, table, tmp_path, l2=0.1)
    rankings = [RankingItem((item.rejected, item.chosen), (2, 1)) for item in items]
    of_rankings, _ = solve(RankingReward, ranked, rankings, table, tmp_path, l2=0.1)
    torch.testing.assert_close(of_rankings.weight, of_pairs.weight, rtol=1e-4, atol=1e-5)


def test_units_and_offsets_of_features_change_no_reward(tmp_path: Path):
    table = noise(200)
    items, loss = judged(table, torch.ones(WIDTH), 100), partial(bradley_terry, centring=0.01)
    plain, fit = solve(PairReward, loss, items, table, tmp_path)
    other = table * torch.tensor([1e-3, 1.0, 10.0, 1e3, 1.0, 1.0]) + torch.tensor([0, 7.0, -3, 0, 0, 0])
    moved, again = solve(PairReward, loss, items, other, tmp_path)
    assert again.l2 == fit.l2
    torch.testing.assert_close(moved(other), plain(table), rtol=1e-2, atol=1e-3)


def test_a_feature_that_does_not_vary_weighs_nothing(tmp_path: Path):
    table = noise(100)
    table[:, 2] = 3.7
    reward, _ = solve(PairReward, bradley_terry, judged(table, torch.ones(WIDTH), 50), table, tmp_path)
    assert reward.weight[2] == 0
    assert reward.weight.isfinite().all()
    assert reward.weight[[0, 1, 3, 4, 5]].all()


@pytest.mark.parametrize("seed", range(6))
def test_labels_of_a_coin_cost_no_more_than_chance_on_rows_that_were_not_trained_on(
    seed: int, tmp_path: Path
):
    """40 features and 60 pairs: weights could be found that get nearly all of them right."""
    table = noise(2 * 260, 40, seed)
    reward, fit = solve(PairReward, bradley_terry, pairs(60), table, tmp_path, seed=seed)
    chosen, rejected = (reward(side) for side in sides(pairs(260)[60:], table))
    assert fit.l2 == L2_WITHOUT_SIGNAL
    assert bradley_terry(chosen, rejected).per_example.mean().item() <= math.log(2) + 1e-6
    assert reward.weight.any()


def test_what_can_be_learned_is_learned_and_told(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    caplog.set_level(logging.INFO)
    table, weight = noise(1200, 20), torch.zeros(20)
    weight[:4] = 1.5
    reward, fit = solve(PairReward, bradley_terry, judged(table, weight, 300), table, tmp_path)
    chosen, rejected = (reward(side).detach() for side in sides(judged(table, weight, 600)[300:], table))
    assert fit.l2 < 1
    assert min(loss for _, loss in fit.curve) < fit.nothing - 0.1
    assert (chosen > rejected).float().mean() > 0.75
    assert "by cross-validation over prompts" in caplog.text


def test_rows_of_one_prompt_are_validated_together(tmp_path: Path):
    """Each prompt has one label on ten equal rows: folds that cut through prompts would see a perfect fit."""
    table = noise(60, 40).repeat_interleave(10, 0)
    items = [LabelItem(reply(i, prompt=i // 10), bool(i // 10 % 2)) for i in range(600)]
    _, fit = solve(LabelReward, good_bad, items, table, tmp_path)
    assert fit.l2 == L2_WITHOUT_SIGNAL


def test_rows_of_a_single_prompt_are_solved_without_validation(tmp_path: Path):
    table = noise(40)
    items = [LabelItem(reply(i, prompt=0), i % 3 == 0) for i in range(40)]
    reward, fit = solve(LabelReward, good_bad, items, table, tmp_path)
    assert fit.curve == ()
    assert reward.weight.isfinite().all()


def test_a_solution_is_only_read_when_a_run_resumes(tmp_path: Path):
    table = noise(100)
    items = judged(table, torch.ones(WIDTH), 50)
    first, fit = solve(PairReward, bradley_terry, items, table, tmp_path)
    second, same = solve(PairReward, bradley_terry, items[:10], table, tmp_path, resume=True)
    assert torch.equal(first.weight, second.weight)
    assert torch.equal(first.bias, second.bias)
    assert same == fit
    third, _ = solve(PairReward, bradley_terry, items[:10], table, tmp_path)
    assert not torch.equal(first.weight, third.weight)
