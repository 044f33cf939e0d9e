from __future__ import annotations

from pathlib import Path

import pytest
import torch
from method_cases import make_config, make_head, make_items, make_objective

from trimtab.guidance.data.items import LabelItem, PairItem, mismatch
from trimtab.guidance.errors import DataError
from trimtab.guidance.features.source import FeatureCache
from trimtab.guidance.policy import Policy, load_policy
from trimtab.guidance.text.encoding import EncodedReply
from trimtab.guidance.training.objectives.pairs import PairAdvantage

P, Q = (6, 7), (8,)


@pytest.fixture(scope="module")
def policy(policy_folder: Path) -> Policy:
    return load_policy(policy_folder)


def test_each_prompt_meets_the_next_reply_to_another_prompt():
    """Prompts p, p, q with replies a, b, c: p gets c, p gets c, q gets a."""
    a, b, c = (EncodedReply(prompt, (reply, 3)) for prompt, reply in ((P, 10), (P, 11), (Q, 12)))
    items = mismatch([LabelItem(a, True), LabelItem(b, False), LabelItem(c, True)])
    strangers = [item.mismatched for item in items]
    assert strangers == [EncodedReply(P, (12, 3)), EncodedReply(P, (12, 3)), EncodedReply(Q, (10, 3))]
    assert [(item.reply, item.label) for item in items] == [(a, True), (b, False), (c, True)]


def test_a_cut_reply_stays_cut_after_another_prompt():
    items = [LabelItem(EncodedReply(P, (10, 3)), True), LabelItem(EncodedReply(Q, (12, 3), True), True)]
    assert mismatch(items)[0].mismatched == EncodedReply(P, (12, 3), True)


def test_rows_of_one_prompt_cannot_be_mismatched():
    with pytest.raises(DataError, match="one prompt"):
        mismatch([LabelItem(EncodedReply(P, (10, 3)), True)] * 2)


def test_the_reference_point_is_measured_on_the_mismatched_replies_without_gradient(policy: Policy):
    """R of the mismatched replies is what a pair's objective says of them."""
    config, items = make_config("advantage", "kto"), make_items("unpaired")
    head = make_head(config, policy)
    objective = make_objective("advantage", config, head, policy, items)
    scores, _ = objective(**objective.collate(items))
    as_pairs = [PairItem(item.reply, item.mismatched) for item in items]
    pairs = PairAdvantage(head, config, FeatureCache(policy, show_progress=False))
    want, _ = pairs(**pairs.collate(as_pairs))
    torch.testing.assert_close(scores["log_ratio"], want["chosen"])
    torch.testing.assert_close(scores["mismatched"], want["rejected"])
    assert scores["log_ratio"].requires_grad
    assert not scores["mismatched"].requires_grad
    assert scores["desirable"].tolist() == [item.label for item in items]
