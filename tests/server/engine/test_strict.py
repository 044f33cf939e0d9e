"""Under strict no bit of a seeded reply depends on who shares its batch, or on how it was computed."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
import torch
from preemptions import watch_preemptions
from tiny_models import SIZES, save_random_head, save_random_model
from transformers import Gemma2Config, LlamaConfig, PretrainedConfig, Qwen3Config

from trimtab.guidance.heads.manifest import ScalarPart
from trimtab.server.engine.batch import Batch, DrawInputs
from trimtab.server.engine.config import EngineConfig
from trimtab.server.engine.engine import Engine
from trimtab.server.engine.model_runner import Hidden
from trimtab.server.engine.request import Completion, Guidance, Request, SamplingParams
from trimtab.server.rollouts.sample import sample

PROMPT = tuple(range(40, 75))
CONFIGS: dict[str, PretrainedConfig] = {
    "llama": LlamaConfig(**SIZES),
    "qwen3": Qwen3Config(**SIZES, head_dim=8),
    "gemma2": Gemma2Config(
        **SIZES, head_dim=8, sliding_window=9, query_pre_attn_scalar=8, attn_logit_softcapping=0.5
    ),
}
BACKENDS = {"llama": "native", "qwen3": "torch", "gemma2": "native"}


@pytest.fixture(params=BACKENDS)
def engine(request: pytest.FixtureRequest, tmp_path: Path) -> Engine:
    folder = save_random_model(CONFIGS[request.param], tmp_path / "model")
    heads = (
        save_random_head(tmp_path, folder, "kind", value=ScalarPart("gru", 8, units=5)),
        save_random_head(tmp_path, folder, "concise", "lowrank", seed=1, value=ScalarPart("mean", 8)),
    )
    return Engine.from_config(
        EngineConfig(
            folder,
            heads=heads,
            block_size=8,
            max_num_seqs=6,
            max_num_batched_tokens=24,
            num_blocks=18,
            strict=True,
            cpu_backend=BACKENDS[request.param],
        )
    )


def target(guidance: Guidance) -> Request:
    return Request("target", PROMPT, SamplingParams(max_tokens=20, seed=5, ignore_eos=True), guidance)


def bits(choice: Completion) -> list[object]:
    """Every number of a reply, exact."""
    return [
        choice.summary,
        *((t.token_id, t.logprob, t.trace and (t.trace.kl, t.trace.value)) for t in choice.tokens),
    ]


def batchmates(rng: random.Random, count: int) -> list[Request]:
    return [
        Request(
            str(i),
            PROMPT[: rng.randrange(36)] + tuple(rng.randrange(250) for _ in range(rng.randint(1, 30))),
            SamplingParams(
                max_tokens=rng.randint(1, 40),
                seed=i,
                temperature=rng.choice((0, 1.0)),
                top_p=0.9,
                n=1 + i % 2,
            ),
            rng.choice((Guidance(), Guidance(2.0, (("kind", 1.0), ("concise", -1.0))))),
        )
        for i in range(count)
    ]


@pytest.mark.parametrize(
    "guidance", [Guidance(), Guidance(-1.5, (("kind", 1.0), ("concise", 0.5)))], ids=["plain", "guided"]
)
def test_a_seeded_reply_is_bitwise_the_same_whoever_shares_its_batch(engine: Engine, guidance: Guidance):
    alone = bits(sample(engine, [target(guidance)])[0])
    again = bits(sample(engine, [target(guidance)])[0])
    assert again == alone, "with its prompt in the prefix cache"
    preempted = watch_preemptions(engine)
    for seed in range(4):
        rng = random.Random(seed)
        made = batchmates(rng, 1 + 3 * seed)
        made.insert(rng.randrange(len(made)), target(guidance))
        (mine,) = (c for c in sample(engine, made) if c.request.request_id == "target")
        assert bits(mine) == alone
    assert "target" in {choice.request.request_id for choice in preempted}


@pytest.mark.parametrize("engine", ["llama"], indirect=True)
def test_no_bit_of_a_reward_depends_on_the_row_that_it_is_read_from(engine: Engine):
    draws = DrawInputs(torch.empty(0), torch.empty(0), [], [])
    generator = torch.Generator().manual_seed(0)
    size = engine.policy.lm_head.shape[1]
    mine = torch.randn(1, size, generator=generator)
    alone = engine.sampler.judge(Hidden(mine, None, draws), 0, 1).tolist()
    for num_rows in (2, 3, 5, 7, 9, 17, 33, 65):
        h = torch.randn(num_rows, size, generator=generator)
        for place in range(num_rows):
            judged = torch.cat([h[:place], mine, h[place:]])
            found = engine.sampler.judge(Hidden(judged, None, draws), 0, len(judged))
            assert found[place : place + 1].tolist() == alone


@pytest.mark.parametrize("engine", ["gemma2", "qwen3"], indirect=True)
def test_steps_are_padded_where_torch_runs_them_alone(engine: Engine, monkeypatch: pytest.MonkeyPatch):
    seen: list[int] = []
    forward = engine.runner._forward

    def watch(batch: Batch) -> object:
        seen.append(len(batch.tokens.ids))
        return forward(batch)

    monkeypatch.setattr(engine.runner, "_forward", watch)
    sample(engine, [target(Guidance())])
    assert seen == ([24, 11, *[1] * 19] if engine.policy.native is not None else [25] * 21)


def test_strict_and_usual_replies_agree(engine: Engine):
    usual = Engine.from_config(EngineConfig(engine.config.model, heads=engine.config.heads, block_size=8))
    ours, theirs = (sample(e, [target(Guidance(1.0, (("kind", 1.0),)))])[0] for e in (engine, usual))
    assert ours.token_ids == theirs.token_ids
    assert [t.logprob for t in ours.tokens] == pytest.approx([t.logprob for t in theirs.tokens], abs=1e-4)
