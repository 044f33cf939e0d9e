"""Policies run by the C++ backend: which are, that they are run right, and what is said of others."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from gguf import GGMLQuantizationType as Quantisation
from served_types import outcome_of
from small_gguf import WORDS, needs_gguf, write_gguf
from tiny_configs import FAR, NEAR
from tiny_models import SIZES, save_random_model
from transformers import GPT2Config, LlamaConfig, LlamaForCausalLM, Phi3Config

from trimtab.guidance.errors import ModelError
from trimtab.guidance.gguf import converted_gguf
from trimtab.kernels.cpu.library import BuildError, load_library
from trimtab.server.engine.config import EngineConfig
from trimtab.server.engine.engine import Engine
from trimtab.server.engine.native import choose as native_choose
from trimtab.server.engine.native import model as native_model
from trimtab.server.engine.native import threads as native_threads
from trimtab.server.engine.policy import ServedPolicy
from trimtab.server.engine.request import Completion, Request, SamplingParams
from trimtab.server.rollouts.sample import sample

FAMILIES = (
    "llama",
    "mistral",
    "qwen2",
    "qwen3",
    "granite",
    "phi3",
    "gemma",
    "gemma2",
    "gemma3_text",
    "smollm3",
)
PROMPTS = ([5, 9, 200, 31], [7] * 20, list(range(40, 70)))


def replies(engine: Engine, **sampling: object) -> list[Completion]:
    asked = SamplingParams(**{"max_tokens": 12, "ignore_eos": True, "seed": 3} | sampling)  # type: ignore[arg-type]
    return sample(engine, [Request(str(i), tuple(prompt), asked) for i, prompt in enumerate(PROMPTS)])


def tokens(engine: Engine, **sampling: object) -> list[list[int]]:
    return [reply.token_ids for reply in replies(engine, **sampling)]


@pytest.mark.parametrize("family", FAMILIES)
def test_a_family_is_run_by_the_backend_and_right_past_its_windows(family: str, tmp_path: Path) -> None:
    outcome = outcome_of(family, tmp_path, NEAR, cpu_backend="native")
    assert outcome.kind == "right", outcome.detail


@pytest.mark.slow
@pytest.mark.parametrize("family", FAMILIES)
def test_a_family_is_run_right_far_beyond_what_start_up_runs_over(family: str, tmp_path: Path) -> None:
    outcome = outcome_of(family, tmp_path, FAR, cpu_backend="native")
    assert outcome.kind == "right", outcome.detail


def test_both_backends_say_the_same(make_engine: Callable[..., Engine]) -> None:
    native, plain = make_engine(cpu_backend="native"), make_engine(cpu_backend="torch")
    assert native.policy.native is not None
    assert plain.policy.native is None
    for ours, theirs in zip(
        replies(native, logprobs=1, temperature=0), replies(plain, logprobs=1, temperature=0), strict=True
    ):
        assert ours.token_ids == theirs.token_ids
        expected = [token.logprob for token in theirs.tokens]
        assert [token.logprob for token in ours.tokens] == pytest.approx(expected, abs=1e-5)


def test_heads_that_rotate_in_part_are_recognised(tmp_path: Path) -> None:
    config = Phi3Config(**SIZES, partial_rotary_factor=0.5)
    folder = save_random_model(config, tmp_path)
    native, plain = (
        Engine.from_config(EngineConfig(folder, max_num_seqs=4, cpu_backend=backend))
        for backend in ("native", "torch")
    )
    for ours, theirs in zip(replies(native, logprobs=1), replies(plain, logprobs=1), strict=True):
        assert ours.token_ids == theirs.token_ids
        expected = [token.logprob for token in theirs.tokens]
        assert [token.logprob for token in ours.tokens] == pytest.approx(expected, abs=1e-5)


def test_another_architecture_is_run_by_torch_and_the_log_says_why(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    config = GPT2Config(
        vocab_size=260, n_positions=64, n_embd=32, n_layer=2, n_head=2, bos_token_id=0, eos_token_id=1
    )
    folder = save_random_model(config, tmp_path)
    with caplog.at_level(logging.INFO):
        engine = Engine.from_config(EngineConfig(folder, max_num_seqs=4))
    assert engine.policy.native is None
    assert engine.policy.packed, "its products are packed all the same"
    assert "runs by torch" in caplog.text
    with pytest.raises(ModelError, match=r"the C\+\+ backend cannot run .* GPT2Model"):
        Engine.from_config(EngineConfig(folder, max_num_seqs=4, cpu_backend="native"))


def test_without_a_compiler_torch_runs_it_and_one_line_says_so(
    make_engine: Callable[..., Engine], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail() -> None:
        raise BuildError("no C++ compiler is found: install g++, or set CXX")

    monkeypatch.setattr(native_choose, "load_library", fail)
    with caplog.at_level(logging.WARNING):
        engine = make_engine()
    assert engine.policy.native is None
    assert [line for line in caplog.messages if "no C++ compiler" in line and "\n" not in line]
    assert len(tokens(engine)) == len(PROMPTS)
    with pytest.raises(ModelError, match=r"no C\+\+ compiler"):
        make_engine(weights="float16")


def test_a_model_that_the_backend_gets_wrong_is_run_by_torch(
    make_engine: Callable[..., Engine], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    right = native_model.read_decoder

    def wrong(*given: object) -> object:
        spec, lm_head = right(*given)  # type: ignore[arg-type]
        return dataclasses.replace(spec, residual_scale=0.9), lm_head

    monkeypatch.setattr(native_model, "read_decoder", wrong)
    engine = make_engine()
    assert engine.policy.native is None
    assert "differ from its own" in caplog.text
    with pytest.raises(ModelError, match="differ from its own"):
        make_engine(cpu_backend="native")


def test_the_weights_are_kept_once(
    llama_folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    release_weights: Callable[[ServedPolicy], None],
) -> None:
    monkeypatch.setattr(ServedPolicy, "release_weights", release_weights)
    engine = Engine.from_config(EngineConfig(llama_folder, max_num_seqs=4, cpu_backend="native"))
    assert sum(p.numel() for p in engine.policy.model.parameters()) == 0
    assert engine.info.vocab_size == engine.policy.vocab_size > 0


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_a_checkpoint_of_two_bytes_is_stored_in_two_bytes(dtype: str, tmp_path: Path) -> None:
    folder = save_random_model(LlamaConfig(**SIZES, dtype=dtype), tmp_path)
    native = Engine.from_config(EngineConfig(folder, max_num_seqs=4)).policy.native
    assert native is not None
    assert (native.formats, native.roundings) == ((dtype,), ())
    whole = Engine.from_config(EngineConfig(folder, max_num_seqs=4, weights="float32"))
    assert whole.policy.native is not None
    assert whole.policy.native.num_bytes > 1.9 * native.num_bytes


@needs_gguf
@pytest.mark.parametrize(
    ("architecture", "quantisation", "formats"),
    [
        ("llama", Quantisation.Q4_1, ("q4",)),
        ("qwen2", Quantisation.Q4_0, ("q4",)),
        ("qwen3", Quantisation.Q8_0, ("q8",)),
        ("qwen2", Quantisation.F16, ("float16",)),
    ],
)
def test_a_gguf_is_stored_as_it_is_and_says_the_same_bits_as_its_floats(
    architecture: str,
    quantisation: Quantisation,
    formats: tuple[str, ...],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    write_gguf(tmp_path / "model.gguf", architecture, quantisation)
    folder = converted_gguf(tmp_path / "model.gguf")
    own, floats = (
        Engine.from_config(EngineConfig(folder, max_num_seqs=4, weights=weights))
        for weights in ("auto", "float32")
    )
    assert own.policy.native is not None and floats.policy.native is not None
    assert (own.policy.native.formats, own.policy.native.roundings) == (formats, ())
    assert own.policy.native.num_bytes < 0.55 * floats.policy.native.num_bytes
    requests = [
        Request(
            str(i),
            tuple(t % len(WORDS) for t in prompt),
            SamplingParams(max_tokens=12, ignore_eos=True, seed=i, logprobs=3),
        )
        for i, prompt in enumerate(PROMPTS)
    ]
    for ours, theirs in zip(sample(own, requests), sample(floats, requests), strict=True):
        assert ours.tokens == theirs.tokens


def test_four_bits_leave_the_vocabulary_eight(make_engine: Callable[..., Engine]) -> None:
    native = make_engine(weights="q4").policy.native
    assert native is not None
    assert native.formats == ("q4", "q8")
    assert native.lm_head.format == "q8"  # type: ignore[attr-defined]
    assert {"q4", "q8"} <= set(native.roundings)


def test_asking_for_bfloat16_rounds_inputs_too_where_the_cpu_multiplies_it(
    make_engine: Callable[..., Engine], monkeypatch: pytest.MonkeyPatch
) -> None:
    def logits(engine: Engine) -> torch.Tensor:
        native = engine.policy.native
        assert native is not None
        size = native.lm_head.shape[1]
        return native.logits(torch.randn(3, size, generator=torch.Generator().manual_seed(0)))

    engine, rounds = make_engine(weights="bfloat16"), load_library().multiplies_bfloat16
    found = logits(engine)
    assert engine.runner.cache.dtype == (torch.bfloat16 if rounds else torch.float32)
    monkeypatch.setenv("TRIMTAB_CPU_ISA", "portable")
    engine = make_engine(weights="bfloat16")
    exact = logits(engine)
    assert engine.runner.cache.dtype == torch.float32
    error = float((found - exact).abs().max() / exact.abs().max())
    assert 1e-5 < error < 1e-2 if rounds else error < 1e-6


def test_torch_takes_one_thread_beside_the_pool_and_gives_the_others_back(
    make_engine: Callable[..., Engine], monkeypatch: pytest.MonkeyPatch
) -> None:
    before, seen = torch.get_num_threads(), []
    engine = make_engine()
    draw = engine.sampler.draw
    monkeypatch.setattr(engine.sampler, "draw", lambda *a: seen.append(torch.get_num_threads()) or draw(*a))
    torch.set_num_threads(2)
    try:
        tokens(engine)
        assert torch.get_num_threads() == 2
        assert set(seen) == {1}
        seen.clear()
        engine._is_native = False  # as beside an expert that torch runs
        tokens(engine)
        assert set(seen) == {2}
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize(("small", "threads"), [(native_threads.SMALL, 1), (0, 2)])
def test_a_small_model_is_tried_on_one_thread(
    small: int, threads: int, make_engine: Callable[..., Engine], monkeypatch: pytest.MonkeyPatch
) -> None:
    seen, check = [], native_choose.self_check

    def watch(policy: ServedPolicy, config: EngineConfig) -> None:
        seen.append(torch.get_num_threads())
        check(policy, config)

    monkeypatch.setattr(native_choose, "self_check", watch)
    monkeypatch.setattr(native_threads, "SMALL", small)
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        make_engine()
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)
    assert seen == [threads]


@pytest.mark.parametrize(
    "options",
    [
        {"weights": "float16"},
        {"weights": "bfloat16"},
        {"weights": "q8"},
        {"weights": "q4"},
        {"kv_cache_dtype": "float16"},
    ],
    ids=str,
)
def test_fewer_bits_change_little(options: dict[str, str], make_engine: Callable[..., Engine]) -> None:
    few, all_bits = make_engine(**options), make_engine()
    sampling = SamplingParams(max_tokens=1, temperature=0, logprobs=20, ignore_eos=True)
    requests = [Request("r", tuple(PROMPTS[0]), sampling)]
    ours, theirs = (sample(engine, requests)[0].tokens[0].top_logprobs for engine in (few, all_bits))
    difference = max(abs(dict(ours).get(token, -9) - logprob) for token, logprob in theirs[:5])
    assert 0 < difference < 0.3


def test_forced_preemption_gives_the_same_bits(make_engine: Callable[..., Engine]) -> None:
    roomy, cramped = make_engine(), make_engine(num_blocks=11)
    assert tokens(cramped) == tokens(roomy)
    assert cramped.stats.num_preemptions > 0


def test_what_a_format_or_this_cpu_cannot_hold_is_one_line(
    tmp_path: Path, make_engine: Callable[..., Engine], monkeypatch: pytest.MonkeyPatch
) -> None:
    model = LlamaForCausalLM(LlamaConfig(**SIZES))
    with torch.no_grad():
        model.model.layers[1].mlp.down_proj.weight[0, 0] = 1e5
    folder = save_random_model(LlamaConfig(**SIZES), tmp_path)
    model.save_pretrained(folder)
    with pytest.raises(ModelError, match="beyond 65504"):
        Engine.from_config(EngineConfig(folder, max_num_seqs=4, weights="float16"))
    monkeypatch.setenv("TRIMTAB_CPU_ISA", "avx1024")
    assert make_engine().policy.native is None
    with pytest.raises(ModelError, match="avx1024"):
        make_engine(cpu_backend="native")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"cpu_backend": "native", "attention": "sdpa"}, "attention auto"),
        ({"cpu_backend": "native", "dtype": "bfloat16"}, "dtype auto or float32"),
        ({"cpu_backend": "torch", "weights": "q8"}, "leave them auto"),
        ({"attention": "tiled", "kv_cache_dtype": "float16"}, "leave them auto"),
        ({"speculate": "ngram", "cpu_backend": "torch"}, "speculate needs"),
        ({"speculate": "ngram", "async_depth": 1}, "speculate needs"),
    ],
    ids=str,
)
def test_what_does_not_go_together_is_refused(options: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        EngineConfig("anywhere", **options).resolved("cpu")  # type: ignore[arg-type]
