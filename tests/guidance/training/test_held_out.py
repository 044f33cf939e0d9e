from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from trimtab.guidance.data.items import RolloutItem
from trimtab.guidance.errors import DataError
from trimtab.guidance.features.source import FeatureCache
from trimtab.guidance.heads.forms import Head
from trimtab.guidance.heads.manifest import AdvantagePart, Parts, ScalarPart
from trimtab.guidance.policy import load_policy
from trimtab.guidance.text.encoding import EncodedReply
from trimtab.guidance.training import held_out
from trimtab.guidance.training.config import TrainConfig
from trimtab.guidance.training.held_out import (
    accuracy,
    better_of_lengths,
    fetch_in_chunks,
    reward_rollouts,
    score_ends,
    score_prefixes,
    slope,
    standard_units,
    tilt_statistics,
    value_per_advantage,
)
from trimtab.guidance.training.objectives.base import ReplyFeatures, lay_out
from trimtab.guidance.training.objectives.rollouts import returns_of


def reply(length: int) -> ReplyFeatures:
    return ReplyFeatures(torch.randn(length + 1, 32), torch.randint(27, (length,)))


def test_a_tie_counts_half():
    assert accuracy(torch.tensor([1.0, 2.0, 3.0, 4.0]), torch.tensor([0.0, 3.0, 3.0, 1.0])) == 2.5 / 4


def test_the_length_baseline_is_the_better_of_longer_and_shorter():
    chosen, rejected = torch.tensor([5, 3, 2, 1]), torch.tensor([2, 2, 4, 1])
    assert better_of_lengths(chosen, rejected) == better_of_lengths(rejected, chosen) == 2.5 / 4


def test_slope_is_the_least_squares_line():
    x = torch.tensor([0.0, 1.0, 2.0, 3.0])
    assert slope(x, 3 * x + torch.tensor([5.0, 4.0, 4.0, 5.0])) == pytest.approx(3.0)
    assert slope(torch.ones(3), torch.randn(3)) is None


def test_value_per_advantage_pairs_each_token_with_the_change_of_value_that_it_made():
    """V = (0, 2, 2) and (1, 5); y_1 y_2 y_3 have Ā 1, 0, 9 and y_1 y_2 have 2, −7: the changes 2, 0, 4 lie on
    the line 2Ā, and what the last token of a reply did is not known."""
    values = [torch.tensor([0.0, 2.0, 2.0]), torch.tensor([1.0, 5.0])]
    assert value_per_advantage(values, torch.tensor([1.0, 0.0, 9.0, 2.0, -7.0])) == pytest.approx(2.0)


def test_rewards_of_tokens_may_be_told_at_the_replys_end(policy_folder: Path, tmp_path: Path):
    """So that what is left to earn is the whole of it, up to the last token."""
    features = FeatureCache(load_policy(policy_folder))
    items = [RolloutItem(EncodedReply((1,), (2, 3, 4)), token_rewards=(1.0, -2.0, 4.0))]
    head, config = Head(Parts(), 32, 27), TrainConfig(name="a", head_folder=tmp_path, run_folder=tmp_path)
    [left] = reward_rollouts(items, head, features, config)
    assert returns_of(left, 1.0).tolist() == [3, 2, 4]
    [whole] = reward_rollouts(items, head, features, replace(config, reward_from="reply"))
    assert returns_of(whole, 1.0).tolist() == [3, 3, 3]


def test_statistics_of_the_tilt_against_float64(policy_folder: Path):
    policy = load_policy(policy_folder)
    torch.manual_seed(0)
    head = Head(Parts(AdvantagePart("tied", 4)), 32, 27)
    torch.nn.init.normal_(head.advantage.up)
    replies = [reply(3), reply(6)]
    found = tilt_statistics(head.advantage, policy, replies)
    batch = lay_out(replies)
    logits, delta = policy.logits(batch["h"]).double(), head.advantage(batch["h"], policy.lm_head).double()
    base = logits.softmax(-1)
    tilt = (logits + delta).softmax(-1)
    centred = delta - (base * delta).sum(-1, keepdim=True)
    picked = torch.arange(9), batch["tokens"]
    want = {
        "log_ratio": (tilt / base).log()[picked],
        "centred": centred[picked],
        "variance": (base * centred**2).sum(-1),
        "kl": (tilt * (tilt / base).log()).sum(-1),
        "flip": tilt.argmax(-1) != base.argmax(-1),
    }
    for name, value in want.items():
        torch.testing.assert_close(getattr(found, name), value, rtol=1e-4, atol=1e-5, check_dtype=False)
    assert 0 < found.flip.float().mean() < 1


def test_an_untrained_head_costs_nothing_and_flips_nothing(policy_folder: Path):
    policy = load_policy(policy_folder)
    found = tilt_statistics(Head(Parts(AdvantagePart()), 32, 27).advantage, policy, [reply(5)])
    for name in ("log_ratio", "centred", "variance", "kl", "flip"):
        assert (getattr(found, name) == 0).all(), name


def test_chunks_change_nothing(policy_folder: Path, monkeypatch: pytest.MonkeyPatch):
    policy = load_policy(policy_folder)
    torch.manual_seed(0)
    head = Head(Parts(AdvantagePart("tied", 4)), 32, 27)
    torch.nn.init.normal_(head.advantage.up)
    replies = [reply(n) for n in (3, 1, 6, 2)]
    whole = tilt_statistics(head.advantage, policy, replies)
    monkeypatch.setattr(held_out, "_POSITIONS_PER_CHUNK", 4)
    pieces = tilt_statistics(head.advantage, policy, iter(replies))
    for name in ("log_ratio", "centred", "variance", "kl"):
        torch.testing.assert_close(getattr(pieces, name), getattr(whole, name))


def test_a_cut_reply_is_judged_after_its_end_and_forecast_at_its_drawn_tokens(policy_folder: Path):
    policy = load_policy(policy_folder)
    torch.manual_seed(0)
    head = Head(Parts(AdvantagePart(rank=4), ScalarPart(), ScalarPart()), 32, 27)
    for parameter in head.parameters():
        torch.nn.init.normal_(parameter)
    features = FeatureCache(policy, show_progress=False)
    replies = [EncodedReply((6, 7), (8, 9, 3), is_cut=cut) for cut in (False, True)] * 70
    ends = score_ends(head.reward, features, replies)
    torch.testing.assert_close(ends, ends[:1].expand(140))
    (h,) = features.get(replies[:1])
    torch.testing.assert_close(ends[0], head.reward(h[-1]))
    values = score_prefixes(head.value, fetch_in_chunks(features, replies))
    assert [len(v) for v in values] == [3, 2] * 70
    torch.testing.assert_close(values[1], values[0][:2])
    along = tilt_statistics(head.advantage, policy, fetch_in_chunks(features, replies))
    assert len(along.kl) == 5 * 70


def test_standard_units_are_the_mean_and_spread_of_the_policys_own_replies():
    assert standard_units(torch.tensor([1.0, 3.0, 1.0, 3.0])) == (2.0, 1.0)
    with pytest.raises(DataError, match="all 3 held-out replies score 2"):
        standard_units(torch.full((3,), 2.0))
