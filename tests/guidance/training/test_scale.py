from __future__ import annotations

import itertools
from pathlib import Path

import pytest
import torch

from trimtab.guidance.features.source import FeatureCache
from trimtab.guidance.heads.forms import Advantage, Head
from trimtab.guidance.heads.manifest import AdvantagePart, Parts
from trimtab.guidance.policy import load_policy
from trimtab.guidance.text.encoding import EncodedReply
from trimtab.guidance.training import scale as scale_module
from trimtab.guidance.training.scale import KL_PER_TOKEN, fit_scale, solve_scale

REPLIES = [EncodedReply((6, 7), (*(5 + (i * k) % 20 for k in range(1, 2 + i % 9)), 3)) for i in range(40)]


@pytest.fixture
def features(policy_folder: Path) -> FeatureCache:
    return FeatureCache(load_policy(policy_folder), show_progress=False)


def make_advantage(form: str, std: float) -> Advantage:
    torch.manual_seed(1)
    advantage = Head(Parts(AdvantagePart(form, 4)), 32, 27).advantage
    torch.nn.init.normal_(advantage.up, std=std)
    return advantage


def mean_kl(features: FeatureCache, advantage: Advantage, strength: float) -> float:
    h = torch.cat([h[: r.num_drawn] for h, r in zip(features.get(REPLIES), REPLIES, strict=True)])
    base = features.policy.logits(h).double()
    tilt = base + strength * advantage(h, features.policy.lm_head).double()
    p, q = tilt.softmax(-1), base.softmax(-1)
    return (p * (p / q).log()).sum(-1).mean().item()


@pytest.mark.parametrize("form", ["tied", "lowrank"])
@pytest.mark.parametrize("std", [1e-3, 0.1, 30.0])
def test_a_unit_of_strength_costs_the_same_for_every_head(form: str, std: float, features: FeatureCache):
    advantage = make_advantage(form, std)
    found = fit_scale(advantage, features, REPLIES, is_tilt=False)
    assert not found.is_weak
    assert mean_kl(features, advantage, found.scale) == pytest.approx(KL_PER_TOKEN, rel=0.01)
    assert found.kl_per_token == pytest.approx(mean_kl(features, advantage, found.scale), rel=1e-3)


def test_units_of_the_reward_do_not_reach_the_knob(features: FeatureCache):
    """An advantage of a millionth of the size, as rewards in other units teach it, has a million times the
    scale."""
    large, small = (
        fit_scale(make_advantage("lowrank", std), features, REPLIES, is_tilt=False) for std in (1, 1e-6)
    )
    assert small.scale == pytest.approx(1e6 * large.scale, rel=0.01)


def test_an_untrained_head_and_a_tilt_that_spends_next_to_nothing_are_weak_and_keep_scale_1(
    features: FeatureCache,
):
    for std in (0.0, 1e-6):
        found = fit_scale(make_advantage("tied", std), features, REPLIES, is_tilt=True)
        assert found.is_weak
        assert found.scale == 1
        assert found.kl_per_token == pytest.approx(0, abs=1e-6)


def test_a_sample_of_the_positions_gives_about_the_scale_of_all(
    features: FeatureCache, monkeypatch: pytest.MonkeyPatch
):
    advantage = make_advantage("lowrank", 0.5)
    whole = fit_scale(advantage, features, REPLIES, is_tilt=True).scale
    monkeypatch.setattr(scale_module, "tile_rows", lambda vocab_size: 5)
    assert fit_scale(advantage, features, REPLIES, is_tilt=True).scale == pytest.approx(whole, rel=1e-4)
    monkeypatch.setattr(scale_module, "_NUMBERS", 27 * 60)
    sampled = fit_scale(advantage, features, REPLIES, is_tilt=True).scale
    assert sampled != whole
    assert sampled == pytest.approx(whole, rel=0.3)


@pytest.mark.parametrize("factor", [1e-3, 0.3, 1.0, 50.0])
def test_the_scale_is_found_wherever_it_lies(factor: float):
    """KL = β² · 2: β = 0.1, though rms, from which the search starts, is off by a factor."""
    assert solve_scale(lambda b: 2 * b * b, 2 * factor, 1e6) == pytest.approx(0.1, rel=0.01)


def test_what_never_spends_as_much_has_no_scale():
    assert solve_scale(lambda b: 0.019 * b / (1 + b), 1.0, 1e4) is None
    assert solve_scale(lambda b: 2 * b * b, 2.0, 0.09) is None


def test_thrice_the_strength_costs_about_nine_times_as_much(features: FeatureCache):
    advantage = make_advantage("tied", 0.2)
    found = fit_scale(advantage, features, REPLIES, is_tilt=True)
    costs = [mean_kl(features, advantage, beta * found.scale) for beta in (0.25, 0.5, 1, 3)]
    assert all(after > before for before, after in itertools.pairwise(costs))
    assert costs[3] / costs[2] == pytest.approx(9, rel=0.5)
