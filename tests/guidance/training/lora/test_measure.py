"""Exact KL of a tuned policy from its base, against the definition in float64."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from tiny_models import SIZES, save_random_model
from transformers import LlamaConfig

from trimtab.guidance.errors import PolicyError
from trimtab.guidance.policy import Policy, load_policy
from trimtab.guidance.text.encoding import EncodedReply
from trimtab.guidance.training.lora.measure import measure_tuned

REPLIES = [
    EncodedReply((65, 66), (67, 68, 257)),
    EncodedReply((70,), (71, 257), is_cut=True),
    EncodedReply((65, 66, 67), (97, 98, 99, 257)),
]


@pytest.fixture(scope="module")
def policies(tmp_path_factory: pytest.TempPathFactory) -> tuple[Policy, Policy]:
    folder: Path = tmp_path_factory.mktemp("policies")
    first, second = (save_random_model(LlamaConfig(**SIZES), folder / str(i), seed=i) for i in range(2))
    return load_policy(first), load_policy(second)


def by_definition(base: Policy, tuned: Policy, reply: EncodedReply) -> float:
    ids = torch.tensor([reply.prompt_ids + reply.reply_ids])
    start = len(reply.prompt_ids) - 1
    with torch.no_grad():
        p, q = (
            policy.model(ids).logits[0, start : start + reply.num_drawn].double().log_softmax(-1)
            for policy in (tuned, base)
        )
    return (p.exp() * (p - q)).sum().item()


def test_kl_is_that_of_the_definition_over_the_drawn_tokens(policies):
    base, tuned = policies
    measured = measure_tuned(base, tuned, REPLIES, show_progress=False)
    kls = [reply.kl for reply in measured]
    assert kls == pytest.approx([by_definition(base, tuned, reply) for reply in REPLIES], rel=1e-5)
    assert min(kls) > 0.01


def test_a_policy_is_at_zero_from_itself(policies):
    same = measure_tuned(policies[0], policies[0], REPLIES, show_progress=False)
    assert [reply.kl for reply in same] == [0.0, 0.0, 0.0]


def test_by_hand_one_token_of_two(policies, monkeypatch):
    """Base (½, ½), tuned (¾, ¼): ¾ ln 1.5 + ¼ ln ½ = 0.3040988 − 0.1732868 = 0.1308120."""

    def logits_of(p: float):
        return lambda self, h: torch.tensor([[p, 1 - p]]).log().expand(len(h), 2)

    base, tuned = policies
    chances = {id(base): 0.5, id(tuned): 0.75}
    monkeypatch.setattr(Policy, "logits", lambda self, h: logits_of(chances[id(self)])(self, h))
    (found,) = measure_tuned(base, tuned, [EncodedReply((65,), (1,))], show_progress=False)
    assert found.kl == pytest.approx(0.1308120, abs=1e-6)
    assert found.base_logprob == pytest.approx(-0.6931472, abs=1e-6)


def test_policies_of_different_vocabularies_are_refused(policies, tmp_path):
    other = load_policy(save_random_model(LlamaConfig(**SIZES | {"vocab_size": 300}), tmp_path / "other"))
    with pytest.raises(PolicyError, match="300"):
        measure_tuned(policies[0], other, REPLIES, show_progress=False)
