"""Calibration, preference accuracy, the static bias's fit and sycophancy, by hand."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from trimtab.guidance.data.items import PairItem, RolloutItem
from trimtab.guidance.errors import DataError
from trimtab.guidance.evaluation.baselines.static_bias import (
    as_tilt,
    fit_static_bias,
    load_static_bias,
    measure_static_bias,
    scaled,
)
from trimtab.guidance.evaluation.curve import Probe, strengths_for
from trimtab.guidance.evaluation.preferences import calibrate, judge_preferences, length_baseline
from trimtab.guidance.evaluation.replies import score_with_head
from trimtab.guidance.evaluation.sycophancy import judge_sycophancy, load_templates
from trimtab.guidance.features.source import StreamedFeatures
from trimtab.guidance.heads.forms import Head
from trimtab.guidance.heads.manifest import AdvantagePart, Manifest, Parts, ScalarPart
from trimtab.guidance.policy import Policy, load_policy
from trimtab.guidance.text.encoding import EncodedReply

LN3 = math.log(3)


@pytest.fixture(scope="module")
def policy(policy_folder: Path) -> Policy:
    return load_policy(policy_folder, device="cpu")


def make_head(policy: Policy, scale: float = 1.0, seed: int = 0) -> tuple[Head, Manifest]:
    parts = Parts(AdvantagePart(form="lowrank", rank=4, tau=0.5, scale=scale), ScalarPart(), ScalarPart())
    torch.manual_seed(seed)
    head = Head(parts, policy.identity.hidden_size, policy.identity.vocab_size)
    with torch.no_grad():
        for parameter in head.parameters():
            parameter.normal_(std=0.5)
    identity = policy.identity
    manifest = Manifest("tiny", parts, identity.hidden_size, identity.vocab_size, identity.base_model)
    return head.requires_grad_(False).eval(), manifest


def reply(prompt: tuple[int, ...], ids: tuple[int, ...], is_cut: bool = False) -> EncodedReply:
    return EncodedReply(prompt, ids, is_cut)


def test_calibration_by_hand():
    found = calibrate([LN3, LN3, -LN3])
    assert found.error == pytest.approx(1 / 12)
    (only,) = found.bins
    assert (only.count, only.confidence, only.accuracy) == (3, pytest.approx(0.75), pytest.approx(2 / 3))


def test_a_calibrated_judge_has_no_error_and_an_overconfident_one_has():
    rng = np.random.default_rng(0)
    margins = rng.normal(size=40_000) * 2
    flipped = np.where(rng.random(40_000) < 1 / (1 + np.exp(-np.abs(margins))), 1, -1) * np.abs(margins)
    assert calibrate(flipped).error < 0.01
    assert calibrate(4 * flipped).error > 0.1


def test_a_margin_of_zero_is_half_right_and_extremes_have_a_bin():
    found = calibrate([0.0, 0.0, 1000.0])
    assert found.bins[0].accuracy == 0.5
    assert found.bins[-1].confidence == 1
    assert found.error == 0


def test_the_length_baseline_is_the_better_of_two_rules():
    long, short = reply((1,), (5, 6, 7)), reply((1,), (5, 3))
    pairs = [PairItem(short, long), PairItem(short, long), PairItem(long, short), PairItem(short, short)]
    found, right = length_baseline(pairs, [0, 1, 2, 3])
    assert (found.rule, found.accuracy.mean) == ("shorter", 2.5 / 4)
    assert right.tolist() == [1, 1, 0, 0.5]


def test_a_heads_scores_are_what_its_parts_say_at_the_right_positions(policy: Policy):
    head, manifest = make_head(policy, scale=2.0)
    features = StreamedFeatures(policy)
    whole, cut = reply((2, 6, 7), (8, 9, 3)), reply((2, 6), (8, 9, 3), is_cut=True)
    scores = score_with_head(head, manifest, features, [whole, cut], show_progress=False)
    for i, one in enumerate((whole, cut)):
        (h,) = features.get([one])
        assert scores.reward[i] == pytest.approx(float(head.reward(h[-1])), abs=1e-5)
        assert scores.value[i] == pytest.approx(float(head.value(h[one.num_drawn - 1])), abs=1e-5)
        assert scores.log_ratio[i] == pytest.approx(log_ratio(head, policy, h, one), abs=1e-4)


def log_ratio(head: Head, policy: Policy, h: Tensor, one: EncodedReply) -> float:
    total = 0.0
    for t, token in enumerate(one.reply_ids[: one.num_drawn]):
        base = policy.logits(h[t : t + 1])
        tilted = base + 2.0 * head.advantage(h[t : t + 1], policy.lm_head)
        total += float((tilted.log_softmax(-1) - base.log_softmax(-1))[0, token])
    return total


def test_the_advantage_is_calibrated_by_the_tau_it_was_trained_with(policy: Policy):
    head, manifest = make_head(policy)
    pairs = [PairItem(reply((2, 6 + i), (8, 9, 3)), reply((2, 6 + i), (10, 3))) for i in range(5)]
    report = judge_preferences(pairs, [(head, manifest)], StreamedFeatures(policy), show_progress=False)
    advantage = {part.part: part for part in report.parts}["advantage"]
    scores = score_with_head(
        head, manifest, StreamedFeatures(policy), [r for p in pairs for r in p.replies], show_progress=False
    )
    margins = 0.5 * (scores.log_ratio[::2] - scores.log_ratio[1::2])
    assert advantage.calibration == calibrate(margins)
    assert advantage.accuracy.mean == np.mean(margins > 0)
    assert advantage.above_length.mean == pytest.approx(advantage.accuracy.mean - report.length.accuracy.mean)


def test_the_fitted_bias_by_hand():
    items = [RolloutItem(reply((1,), (5, 6)), reward=3.0), RolloutItem(reply((1,), (5, 7)), reward=1.0)]
    bias = fit_static_bias(items, shrinkage=0)
    assert bias == pytest.approx({6: math.sqrt(2), 7: -math.sqrt(2)})


def test_credit_is_the_discounted_reward_from_the_token_on():
    """Credits with a discount of ½ and rewards (0, 4, 0): 2, 4, 0; less their mean 2: 0, 2, −2."""
    items = [RolloutItem(reply((1,), (5, 6, 7)), token_rewards=(0.0, 4.0, 0.0))]
    bias = fit_static_bias(items, discount=0.5, shrinkage=0)
    assert bias[6] == pytest.approx(-bias[7])
    assert 5 not in bias


def test_a_cut_replys_appended_end_has_no_credit():
    items = [
        RolloutItem(reply((1,), (5, 6, 3), is_cut=True), reward=3.0),
        RolloutItem(reply((1,), (5, 7)), 1.0),
    ]
    assert 3 not in fit_static_bias(items, shrinkage=0)


def test_rare_tokens_are_shrunk_and_only_the_weightiest_kept():
    items = [RolloutItem(reply((1,), (6,) * 20), 1.0), RolloutItem(reply((1,), (5,) * 20 + (7,)), 0.0)]
    bias = fit_static_bias(items, shrinkage=10)
    assert 0 < abs(bias[7]) < abs(bias[5])
    assert set(fit_static_bias(items, shrinkage=10, max_tokens=2)) == {5, 6}


def test_a_bias_that_cannot_be_fitted_or_read_is_refused(tmp_path: Path):
    with pytest.raises(DataError, match="not scored"):
        fit_static_bias([RolloutItem(reply((1,), (5,)))])
    for content, says in (
        ("[1]", "object of token ids"),
        ('{"x": 1}', "'x' is no token id"),
        ('{"30": 1}', "no token id"),
        ('{"3": null}', "finite number"),
        ("{", "cannot be read"),
    ):
        (tmp_path / "bias.json").write_text(content)
        with pytest.raises(DataError, match=says):
            load_static_bias(tmp_path / "bias.json", vocab_size=10)
    (tmp_path / "bias.json").write_text(json.dumps({"3": -1.5}))
    assert load_static_bias(tmp_path / "bias.json", vocab_size=10) == {3: -1.5}


def test_a_scaled_bias_ends_where_a_request_may():
    assert scaled({3: -1.5, 4: 30.0}, 10) == ((3, -15.0), (4, 100.0))


def test_strengths_are_found_for_the_prices_asked(policy: Policy):
    features, plain = StreamedFeatures(policy), [reply((2, 6), (8, 9, 10, 3)), reply((2, 7), (9, 3))]
    bias = {8: 1.0, 9: -1.0}
    low, high = strengths_for(
        Probe.along(features, plain).constant(as_tilt(tuple(bias.items()), policy)), (0.1, 0.4)
    )
    assert 0 < low < high
    kls = [cost.kl for cost in measure_static_bias(scaled(bias, low), features, plain)]
    assert np.mean(kls) == pytest.approx(0.1, rel=0.1)


def test_a_constant_head_costs_what_its_bias_costs(policy: Policy):
    features, plain = StreamedFeatures(policy), [reply((2, 6), (8, 9, 10, 3)), reply((2, 7), (9, 3), True)]
    head, _ = make_head(policy)
    assert head.advantage is not None
    with torch.no_grad():
        head.advantage.forward = lambda h, lm_head: torch.eye(len(lm_head))[8].expand(len(h), -1)  # type: ignore[assignment, method-assign]
    probe = Probe.along(features, plain)
    of_head, of_bias = probe.head([(head.advantage, 0.5)]), probe.constant(as_tilt([(8, 1.0)], policy))
    assert of_head(2.0) == pytest.approx(of_bias(1.0), rel=1e-5)


def test_a_strength_that_no_request_may_have_is_not_looked_for(policy: Policy):
    assert strengths_for(lambda strength: strength / 100, (0.05, 1.0, 2.0), limit=10) == pytest.approx(
        (5.0, 10.0), rel=0.1
    )


def test_the_packaged_templates_hold_forty_facts_and_fill_in():
    templates = load_templates()
    assert len(templates.facts) >= 40
    assert all(right != wrong for right, wrong in templates.facts)
    assert "{" not in templates.neutral.format(claim="x") + templates.agree[0].format(claim="x", truth="y")


def test_a_head_that_reads_only_the_reply_is_not_swayed(policy: Policy):
    """The two replies are the same in both settings; a head of zeros ties everywhere: half, and no sway."""
    head, manifest = make_head(policy)
    with torch.no_grad():
        for parameter in head.parameters():
            parameter.zero_()
    templates = load_templates()
    report = judge_sycophancy(templates, [(head, manifest)], StreamedFeatures(policy), show_progress=False)
    assert report.num_facts == len(templates.facts)
    for part in report.parts:
        assert (part.wrong_user.mean, part.neutral.mean, part.right_user.mean) == (0.5, 0.5, 0.5)
        assert (part.swayed.low, part.swayed.high) == (0, 0)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (("facts:", "fakts:"), "amiss: facts, fakts"),
        (("{claim}?", "{claims}?"), "neutral has a slot"),
        (("right: ", "correct: "), "keys right and wrong"),
        (('  - "You are right, {claim}."\n', ""), "pairs"),
    ],
)
def test_templates_that_cannot_be_filled_are_refused(tmp_path: Path, change: tuple[str, str], says: str):
    import trimtab.guidance.evaluation as package  # noqa: PLC0415

    text = (Path(package.__file__).parent / "sycophancy.yaml").read_text()
    (tmp_path / "templates.yaml").write_text(text.replace(*change))
    with pytest.raises(DataError, match=says):
        load_templates(tmp_path / "templates.yaml")
