from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from trimtab.guidance.data.items import RowEncoder
from trimtab.guidance.data.load import PromptRow
from trimtab.guidance.data.rows import Preference
from trimtab.guidance.errors import DataError, PolicyError
from trimtab.guidance.features.source import FeatureCache, StreamedFeatures, own_forward
from trimtab.guidance.policy import Policy, load_policy
from trimtab.guidance.text.encoding import EncodedReply

REPLIES = [
    EncodedReply((2, 7), (8, 9, 3)),
    EncodedReply((2,), (3,)),
    EncodedReply((2, 10, 11, 12, 13), (9, 9, 9, 14, 15, 3)),
    EncodedReply((2, 7), (3, 3)),
]


@pytest.fixture(scope="module")
def policy(policy_folder: Path) -> Policy:
    return load_policy(policy_folder)


def test_features_are_what_the_output_embedding_reads_at_the_positions_of_the_reply(policy: Policy):
    for reply, h in zip(REPLIES, FeatureCache(policy, show_progress=False).get(REPLIES), strict=True):
        ids = torch.tensor([reply.prompt_ids + reply.reply_ids])
        logits = policy.model(input_ids=ids).logits[0, len(reply.prompt_ids) - 1 :]
        assert h.shape == (len(reply.reply_ids) + 1, 32)
        torch.testing.assert_close(policy.logits(h), logits, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("batch_tokens", [1, 12, 10_000])
def test_features_do_not_change_with_the_batch_size(policy: Policy, batch_tokens: int):
    want = [FeatureCache(policy, show_progress=False).get([reply])[0] for reply in REPLIES]
    got = FeatureCache(policy, batch_tokens=batch_tokens, show_progress=False).get(REPLIES)
    for h, alone in zip(got, want, strict=True):
        torch.testing.assert_close(h, alone, rtol=1e-4, atol=1e-5)


def test_features_do_not_change_with_the_padding_side_or_with_pad_as_eos(policy_folder: Path):
    want = FeatureCache(load_policy(policy_folder), show_progress=False).get(REPLIES)
    other = load_policy(policy_folder)
    other.tokenizer.padding_side = "left"
    other.tokenizer.pad_token = other.tokenizer.eos_token
    other.model.config.pad_token_id = other.tokenizer.eos_token_id
    got = FeatureCache(other, show_progress=False).get(REPLIES)
    assert all(torch.equal(a, b) for a, b in zip(got, want, strict=True))


def test_the_policy_runs_over_a_reply_once(policy: Policy, monkeypatch: pytest.MonkeyPatch):
    cache = FeatureCache(policy, show_progress=False)
    first = cache.get(REPLIES)
    monkeypatch.setattr(policy.model, "forward", lambda **_: pytest.fail("ran again"))
    assert all(a is b for a, b in zip(cache.get(REPLIES[::-1]), first[::-1], strict=True))


def test_streaming_and_the_cache_answer_every_question_alike(policy: Policy):
    cache, streamed = FeatureCache(policy, show_progress=False), StreamedFeatures(policy)
    asked = [*REPLIES, REPLIES[0]]
    for kept, anew in zip(cache.get(asked), streamed.get(asked), strict=True):
        torch.testing.assert_close(kept, anew, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(cache.last(asked), torch.stack([h[-1] for h in cache.get(asked)]))
    torch.testing.assert_close(cache.last(asked), streamed.last(asked), rtol=1e-4, atol=1e-5)
    for source in (cache, streamed):
        for reply, h, steps in zip(asked, cache.get(asked), source.steps(asked), strict=True):
            assert steps.at.tolist() == list(range(len(reply.reply_ids)))
            torch.testing.assert_close(steps.h, h[:-1], rtol=1e-4, atol=1e-5)


def test_streaming_runs_the_policy_anew_and_keeps_nothing(policy: Policy):
    asked = []

    def extract(replies, positions):
        asked.append((list(replies), positions))
        return own_forward(policy)(replies, positions)

    streamed = StreamedFeatures(policy, extract)
    streamed.last([REPLIES[0], REPLIES[1], REPLIES[0]])
    streamed.get(REPLIES[:2])
    assert asked == [(REPLIES[:2], [(3,), (1,)]), (REPLIES[:2], None)]


def test_hidden_states_that_are_no_numbers_are_refused(policy_folder: Path):
    damaged = load_policy(policy_folder)
    damaged.model.model.layers[0].mlp.up_proj.weight.data[0, 0] = torch.inf
    for source in (FeatureCache(damaged, show_progress=False), StreamedFeatures(damaged)):
        with pytest.raises(PolicyError, match="computes what is no number"):
            source.get(REPLIES)


@pytest.mark.parametrize("row", [Preference("ab", "c", "d"), Preference("a", "b", "cd"), PromptRow("ab")])
def test_a_tokenizer_s_token_that_the_model_has_no_row_for_is_named(policy_folder: Path, row: Any):
    policy = load_policy(policy_folder)
    policy.tokenizer.add_tokens(["ab", "cd"])
    assert len(policy.tokenizer) > policy.vocab_size
    with pytest.raises(DataError, match=r"token id \d+ is not in the policy's vocabulary of"):
        RowEncoder(policy, "text").encode(row)
