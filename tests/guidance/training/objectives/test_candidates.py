from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from trimtab.guidance.features.source import FeatureCache
from trimtab.guidance.policy import Policy, load_policy
from trimtab.guidance.text.encoding import EncodedReply
from trimtab.guidance.training.objectives import distil

ROWS = [(6, 7, 8, 9), (9, 10), (10, 11, 12, 6, 7, 8, 9), (8,)]
LENGTHS = [(2, 4), (1,), (1, 3, 7), (1,)]


@pytest.fixture(scope="module")
def policy(policy_folder: Path) -> Policy:
    return load_policy(policy_folder)


@pytest.mark.parametrize("can_mask", [True, False])
def test_candidates_are_the_likeliest_tokens_and_each_is_appended_to_its_prefix(
    can_mask: bool, policy: Policy, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(distil, "_can_mask", lambda _: can_mask)
    monkeypatch.setattr(distil, "_agree", lambda *_: True)
    found = dict(distil.run_candidates(policy, ROWS, LENGTHS, 4))
    assert sorted(found) == list(range(len(ROWS)))
    for index, row in enumerate(ROWS):
        assert len(found[index].tokens) == len(LENGTHS[index])
        for at, length in enumerate(LENGTHS[index]):
            logits = policy.model(input_ids=torch.tensor([row[:length]])).logits[0, -1]
            weight, tokens = logits.softmax(-1).topk(4)
            assert found[index].tokens[at].tolist() == tokens.tolist()
            torch.testing.assert_close(found[index].weight[at], weight, rtol=1e-4, atol=1e-6)
            replies = [EncodedReply(row[:length], (token,)) for token in tokens.tolist()]
            h = FeatureCache(policy, show_progress=False).get(replies)
            torch.testing.assert_close(found[index].h[at], h[0][0], rtol=1e-4, atol=1e-5)
            after = torch.stack([s[1] for s in h])
            torch.testing.assert_close(found[index].after[at], after, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("config", "can_mask"),
    [
        ({}, True),
        ({"layer_types": ["full_attention", "sliding_attention"]}, False),
        ({"layer_types": ["full_attention"] * 2, "sliding_window": 8}, True),
        ({"sliding_window": 8}, False),
    ],
)
def test_a_policy_that_keeps_a_window_is_not_masked(config: dict[str, Any], can_mask: bool):
    text = SimpleNamespace(**config)
    model = SimpleNamespace(config=SimpleNamespace(get_text_config=lambda: text))
    assert distil._can_mask(SimpleNamespace(model=model)) is can_mask


def test_a_policy_that_does_not_honour_the_mask_runs_each_prefix_by_itself(
    policy: Policy, monkeypatch: pytest.MonkeyPatch
):
    right = dict(distil.run_candidates(policy, ROWS, LENGTHS, 4))
    monkeypatch.setattr(distil, "_mask", lambda places, n, dtype: None)
    found = dict(distil.run_candidates(policy, ROWS, LENGTHS, 4))
    for index, want in right.items():
        torch.testing.assert_close(found[index].after, want.after, rtol=1e-4, atol=1e-5)


def test_a_row_does_not_change_with_its_batch(policy: Policy, monkeypatch: pytest.MonkeyPatch):
    together = dict(distil.run_candidates(policy, ROWS, LENGTHS, 4))
    monkeypatch.setattr(distil, "_TOKENS_AT_ONCE", 1)
    alone = dict(distil.run_candidates(policy, ROWS, LENGTHS, 4))
    for index in range(len(ROWS)):
        torch.testing.assert_close(alone[index].after, together[index].after, rtol=1e-4, atol=1e-5)


def test_there_are_no_more_candidates_than_tokens(policy: Policy):
    ((_, only),) = distil.run_candidates(policy, [(6, 7)], [[2]], 1000)
    assert sorted(only.tokens[0].tolist()) == list(range(policy.identity.vocab_size))
    assert only.weight.sum().item() == pytest.approx(1)
