from __future__ import annotations

from pathlib import Path

import pytest
import torch

from trimtab.guidance.encoding import EncodedReply
from trimtab.guidance.features import FeatureCache
from trimtab.guidance.objectives import candidates
from trimtab.guidance.policy import Policy, load_policy

PREFIXES = [(6, 7, 8), (9,), (10, 11, 12), (8, 7, 9), (13, 14)]


@pytest.fixture(scope="module")
def policy(policy_folder: Path) -> Policy:
    return load_policy(policy_folder)


def test_candidates_are_the_likeliest_tokens_and_each_is_appended_to_its_prefix(policy: Policy):
    found = dict(candidates.run_candidates(policy, PREFIXES, 4))
    assert sorted(found) == list(range(len(PREFIXES)))
    for index, prefix in enumerate(PREFIXES):
        logits = policy.model(input_ids=torch.tensor([prefix])).logits[0, -1]
        weight, tokens = logits.softmax(-1).topk(4)
        assert found[index].tokens.tolist() == tokens.tolist()
        torch.testing.assert_close(found[index].weight, weight)
        replies = [EncodedReply(prefix, (token,)) for token in tokens.tolist()]
        h = FeatureCache(policy, show_progress=False).get(replies)
        torch.testing.assert_close(found[index].h, h[0][0], rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(found[index].after, torch.stack([s[1] for s in h]), rtol=1e-4, atol=1e-5)


def test_a_prefix_does_not_change_with_its_batch(policy: Policy, monkeypatch: pytest.MonkeyPatch):
    together = dict(candidates.run_candidates(policy, PREFIXES, 4))
    monkeypatch.setattr(candidates, "_CACHED_TOKENS", 1)
    alone = dict(candidates.run_candidates(policy, PREFIXES, 4))
    for index in range(len(PREFIXES)):
        torch.testing.assert_close(alone[index].after, together[index].after, rtol=1e-4, atol=1e-5)


def test_there_are_no_more_candidates_than_tokens(policy: Policy):
    ((_, only),) = candidates.run_candidates(policy, [(6, 7)], 1000)
    assert sorted(only.tokens.tolist()) == list(range(policy.identity.vocab_size))
    assert only.weight.sum().item() == pytest.approx(1)
