"""The engine on our Triton attention: the tokens of SDPA, and under strict the same bits in every batch."""

from __future__ import annotations

from pathlib import Path

import pytest
from tiny_models import SIZES, save_random_head, save_random_model
from transformers import Gemma2Config, MistralConfig, PhimoeConfig

from trimtab.guidance.heads.bank import HeadBank
from trimtab.guidance.rules import Lookahead
from trimtab.server.engine.config import EngineConfig
from trimtab.server.engine.engine import Engine
from trimtab.server.engine.fused_layers import fuse_layers
from trimtab.server.engine.policy import load_served
from trimtab.server.engine.request import Completion, Guidance, Request, SamplingParams
from trimtab.server.rollouts.sample import sample


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    config = Gemma2Config(
        **{**SIZES, "num_hidden_layers": 2},
        head_dim=8,
        sliding_window=9,
        query_pre_attn_scalar=8,
        attn_logit_softcapping=0.5,
    )
    return save_random_model(config, tmp_path_factory.mktemp("gemma2"))


@pytest.fixture(scope="module")
def window_in_the_mask_alone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    config = PhimoeConfig(**{**SIZES, "num_hidden_layers": 2}, sliding_window=9, num_local_experts=2)
    return save_random_model(config, tmp_path_factory.mktemp("phimoe"))


def run(folder: Path, requests: list[Request], **options: object) -> list[Completion]:
    config = EngineConfig(folder, block_size=8, max_num_seqs=4, max_num_batched_tokens=16, **options)  # type: ignore[arg-type]
    policy = load_served(folder)
    bank = HeadBank([], 32, device="cpu")
    engine = Engine(policy, bank, config.resolved("cpu"))
    return sample(engine, requests)


def ask(name: str, num_prompt: int, max_tokens: int) -> Request:
    sampling = SamplingParams(max_tokens=max_tokens, seed=num_prompt, ignore_eos=True)
    return Request(name, tuple(range(40, 40 + num_prompt)), sampling)


REQUESTS = [ask("long", 20, 2), ask("short", 3, 4), ask("late", 9, 2)]


@pytest.mark.parametrize("policy", ["folder", "window_in_the_mask_alone"])
def test_chunked_mixed_and_decode_steps_give_the_tokens_of_sdpa(
    policy: str, request: pytest.FixtureRequest
) -> None:
    folder = request.getfixturevalue(policy)
    ours, theirs = (run(folder, REQUESTS, attention=name) for name in ("triton", "sdpa"))
    assert [choice.token_ids for choice in ours] == [choice.token_ids for choice in theirs]
    for mine, other in zip(ours, theirs, strict=True):
        expected = [token.logprob for token in other.tokens]
        assert [token.logprob for token in mine.tokens] == pytest.approx(expected, abs=1e-4)


def test_under_strict_company_changes_no_bit(folder: Path):
    options = {"attention": "triton", "strict": True}
    together = run(folder, REQUESTS, **options)[1]
    (alone,) = run(folder, REQUESTS[1:2], **options)
    assert [(t.token_id, t.logprob) for t in together.tokens] == [
        (t.token_id, t.logprob) for t in alone.tokens
    ]


def test_fused_layers_over_the_paged_cache_give_the_tokens_of_sdpa(tmp_path: Path):
    folder = save_random_model(MistralConfig(**SIZES, head_dim=8, sliding_window=9), tmp_path)
    theirs = run(folder, REQUESTS, attention="sdpa")
    config = EngineConfig(
        folder,
        block_size=8,
        max_num_seqs=4,
        max_num_batched_tokens=16,
        attention="triton",
    )
    engine = Engine(load_served(folder), HeadBank([], 32, device="cpu"), config.resolved("cpu"))
    assert fuse_layers(engine.policy.model, engine.runner._attention.rotate_and_attend) == 3
    ours = sample(engine, REQUESTS)
    assert [choice.token_ids for choice in ours] == [choice.token_ids for choice in theirs]
    for mine, other in zip(ours, theirs, strict=True):
        expected = [token.logprob for token in other.tokens]
        assert [token.logprob for token in mine.tokens] == pytest.approx(expected, abs=1e-4)


def test_more_probes_than_slots_attend_as_by_sdpa(folder: Path, tmp_path: Path) -> None:
    head = save_random_head(tmp_path, folder, "kind", "lowrank")
    guidance = Guidance(1.0, (("kind", 1.0),), rule=Lookahead(5))
    sampling = SamplingParams(max_tokens=1, seed=1, ignore_eos=True)
    replies = []
    for attention in ("triton", "sdpa"):
        config = EngineConfig(folder, (head,), block_size=8, max_num_seqs=3, attention=attention)  # type: ignore[arg-type]
        engine = Engine.from_config(config)
        replies.append(sample(engine, [Request("one", tuple(range(40, 45)), sampling, guidance)])[0])
    ours, theirs = replies
    assert ours.token_ids == theirs.token_ids
    assert ours.summary.kl == pytest.approx(theirs.summary.kl, abs=1e-3)
