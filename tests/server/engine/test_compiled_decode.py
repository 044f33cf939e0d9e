"""The compiled decode step draws what the uncompiled one does, and is left out where it cannot be had."""

from __future__ import annotations

import logging
import shutil
from pathlib import Path

import pytest
import torch
from tiny_models import SIZES, save_random_head, save_random_model
from transformers import Gemma2Config, LlamaConfig, MistralConfig, PretrainedConfig

from trimtab.guidance.controllers.entropy_gate import EntropyGate
from trimtab.guidance.controllers.kl_budget import KLBudget
from trimtab.guidance.controllers.max_kl import MaxKL
from trimtab.guidance.errors import ModelError
from trimtab.guidance.rules import Contrast, Lookahead, Smc
from trimtab.server.engine import compiled_decode
from trimtab.server.engine.compiled_decode import CompiledDecode
from trimtab.server.engine.config import EngineConfig
from trimtab.server.engine.engine import Engine
from trimtab.server.engine.request import Guidance, Request, SamplingParams, TokenRecord
from trimtab.server.rollouts.sample import sample

NUM_REQUESTS = 6
KIND = (("kind", 1.0),)
GUIDANCES = (
    Guidance(),
    Guidance(3.0, KIND, controllers=(MaxKL(0.1),)),
    Guidance(-2.0, KIND, controllers=(KLBudget(0.5), EntropyGate(1.0))),
    Guidance(rule=Contrast((7, 8, 9), gamma=2.0, alpha=0.01)),
    Guidance(1.0, KIND, rule=Lookahead(4)),
    Guidance(1.0, KIND, rule=Smc(particles=3, block=3)),
)
needs_compiler = pytest.mark.skipif(shutil.which("g++") is None, reason="needs a C++ compiler: g++")
WINDOW_AND_SOFTCAP = Gemma2Config(
    **SIZES,
    head_dim=8,
    sliding_window=9,
    query_pre_attn_scalar=8,
    attn_logit_softcapping=0.5,
    final_logit_softcapping=None,
)


def make_engine(folder: Path, compile: str, heads: tuple[Path, ...] = ()) -> Engine:
    return Engine.from_config(
        EngineConfig(folder, heads, max_num_seqs=NUM_REQUESTS, num_blocks=100, compile=compile)  # type: ignore[arg-type]
    )


def complete(engine: Engine, guidances: tuple[Guidance, ...] = (Guidance(),)) -> list[list[TokenRecord]]:
    """Replies of several lengths, so that rows leave one by one until one is alone."""
    requests = []
    for i in range(NUM_REQUESTS):
        generator = torch.Generator().manual_seed(i)
        prompt = torch.randint(250, (3 + 5 * i,), generator=generator)
        sampling = SamplingParams(max_tokens=12 + 2 * i, temperature=i % 2, seed=i, ignore_eos=True)
        guidance = guidances[i % len(guidances)]
        requests.append(Request(str(i), tuple(prompt.tolist()), sampling, guidance))
    return [completion.tokens for completion in sample(engine, requests)]


@needs_compiler
@pytest.mark.parametrize("config", [LlamaConfig(**SIZES), WINDOW_AND_SOFTCAP], ids=["llama", "gemma2"])
def test_compiled_steps_draw_the_tokens_of_uncompiled_ones(
    config: PretrainedConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = save_random_model(config, tmp_path / "model")
    heads = (save_random_head(tmp_path, folder, "kind", parts="av"),)
    expected = complete(make_engine(folder, "off", heads), GUIDANCES)
    num_compiled = 0
    run = CompiledDecode.run

    def counted(self: CompiledDecode, *args: torch.Tensor) -> torch.Tensor:
        nonlocal num_compiled
        num_compiled += 1
        return run(self, *args)  # type: ignore[arg-type]

    monkeypatch.setattr(CompiledDecode, "run", counted)
    actual = complete(make_engine(folder, "on", heads), GUIDANCES)
    assert num_compiled > 20
    for want, got in zip(expected, actual, strict=True):
        assert [token.token_id for token in got] == [token.token_id for token in want]
        for a, b in zip(want, got, strict=True):
            assert a.logprob == pytest.approx(b.logprob, abs=1e-4)


@needs_compiler
def test_two_policies_in_one_process_keep_their_own_graphs(tmp_path: Path) -> None:
    sizes = {**SIZES, "num_hidden_layers": 1}
    engines = [
        make_engine(save_random_model(config, tmp_path / str(i), seed=i), "on")
        for i, config in enumerate((LlamaConfig(**sizes), MistralConfig(**sizes, sliding_window=9)))
    ]
    replies = [complete(engine) for engine in engines]
    assert replies[0] != replies[1]


def test_auto_does_not_compile_a_small_policy(tmp_path: Path) -> None:
    engine = make_engine(save_random_model(LlamaConfig(**SIZES), tmp_path / "model"), "auto")
    assert engine.runner.compiled is None


def test_auto_does_not_wait_for_a_deep_policy_to_compile(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[object] = []
    monkeypatch.setattr(CompiledDecode, "_compile", lambda *args: asked.append(args))
    monkeypatch.setattr(compiled_decode, "MIN_PARAMETERS", 0)
    monkeypatch.setattr(compiled_decode, "MAX_LAYERS", 1)
    folder = save_random_model(LlamaConfig(**{**SIZES, "num_hidden_layers": 2}), tmp_path / "model")
    assert make_engine(folder, "auto").runner.compiled is None
    assert not asked


def test_auto_does_without_where_compiling_fails_and_on_refuses(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(*_: object) -> None:
        raise RuntimeError("no working C++ compiler found")

    monkeypatch.setattr(CompiledDecode, "_compile", fail)
    monkeypatch.setattr(compiled_decode, "MIN_PARAMETERS", 0)
    folder = save_random_model(LlamaConfig(**SIZES), tmp_path / "model")
    with caplog.at_level(logging.WARNING):
        assert complete(make_engine(folder, "auto"))
    assert "no working C++ compiler found" in caplog.text
    with pytest.raises(ModelError, match=r"--compile on: .* no working C\+\+ compiler found"):
        make_engine(folder, "on")


def test_logits_of_the_models_own_making_are_not_compiled(tmp_path: Path) -> None:
    config = Gemma2Config(**SIZES, head_dim=8, query_pre_attn_scalar=8)
    with pytest.raises(ModelError, match="--compile on"):
        make_engine(save_random_model(config, tmp_path / "model"), "on")


@pytest.mark.parametrize(
    ("ends", "together"), [((100, 2, 2, 2), True), ((400, 2, 2, 2), False), ((400, 300, 200), True)]
)
def test_rows_run_together_unless_most_would_pay_for_one(ends: tuple[int, ...], together: bool) -> None:
    assert CompiledDecode.suits(ends) is together
