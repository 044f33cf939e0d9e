"""Models that cannot be served right are refused at start, by name, in one line."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_models import SIZES, byte_tokenizer, save_random_head, save_random_model
from transformers import (
    BloomConfig,
    GptOssConfig,
    Lfm2Config,
    LlamaConfig,
    LlamaForCausalLM,
    PretrainedConfig,
    T5Config,
)

from trimtab.guidance.errors import HeadError, ModelError
from trimtab.server.engine.attention import sdpa as sdpa_attention
from trimtab.server.engine.config import EngineConfig
from trimtab.server.engine.engine import Engine


def start(folder: Path, **options: object) -> Engine:
    return Engine.from_config(EngineConfig(folder, block_size=8, max_num_seqs=4, **options))  # type: ignore[arg-type]


def refusal(folder: Path, **options: object) -> str:
    with pytest.raises(ModelError) as error:
        start(folder, **options)
    assert "\n" not in str(error.value)
    return str(error.value)


SINKS = GptOssConfig(
    **SIZES,
    head_dim=8,
    num_local_experts=2,
    num_experts_per_tok=1,
    rope_parameters={"rope_type": "default", "rope_theta": 1e4},
)
UNSERVABLE: dict[str, tuple[PretrainedConfig, str]] = {
    "attention sinks": (SINKS, "s_aux"),
    "its own attention": (
        BloomConfig(vocab_size=260, hidden_size=32, n_layer=2, n_head=4),
        "AttentionInterface",
    ),
    "state-space layers": (Lfm2Config(**SIZES, layer_types=["conv", "full_attention", "conv"]), "1 of its 3"),
}


@pytest.mark.parametrize("name", UNSERVABLE)
def test_architectures_that_paged_attention_cannot_do_are_refused(name: str, tmp_path: Path):
    config, words = UNSERVABLE[name]
    assert words in refusal(save_random_model(config, tmp_path))


def test_an_encoder_decoder_is_refused(tmp_path: Path):
    T5Config().save_pretrained(tmp_path)
    assert "encoder-decoder" in refusal(tmp_path)


def test_an_unknown_path_is_refused_with_what_to_give_instead():
    assert "name a folder that holds config.json" in refusal(Path("no/such/model"))
    assert "no hub can be reached" in refusal("some/model")  # type: ignore[arg-type]


def test_a_folder_without_a_model_is_refused(tmp_path: Path):
    assert "config.json" in refusal(tmp_path)


def test_corrupt_weights_are_refused(tmp_path: Path):
    save_random_model(LlamaConfig(**SIZES), tmp_path)
    weights = tmp_path / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[: weights.stat().st_size // 2])
    assert "cannot be loaded" in refusal(tmp_path)


@pytest.mark.parametrize("backend", ["torch", "native"])
def test_weights_that_are_no_numbers_are_refused(tmp_path: Path, backend: str):
    save_random_model(LlamaConfig(**SIZES), tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    weights["model.layers.1.mlp.up_proj.weight"][0, 0] = torch.nan
    save_file(weights, tmp_path / "model.safetensors", metadata={"format": "pt"})
    assert "computes what is no number" in refusal(tmp_path, cpu_backend=backend)


def test_missing_weights_are_refused_and_not_made_up(tmp_path: Path):
    model = LlamaForCausalLM(LlamaConfig(**SIZES))
    state = {k: v for k, v in model.state_dict().items() if "layers.1" not in k}
    model.save_pretrained(tmp_path, state_dict=state)
    byte_tokenizer().save_pretrained(tmp_path)
    assert "lacks weights" in refusal(tmp_path)


def test_pickled_weights_are_refused(tmp_path: Path):
    save_random_model(LlamaConfig(**SIZES), tmp_path)
    (tmp_path / "model.safetensors").unlink()
    torch.save({}, tmp_path / "pytorch_model.bin")
    refusal(tmp_path)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device here")
def test_a_device_that_is_not_there_is_refused(llama_folder: Path):
    assert "--device cpu" in refusal(llama_folder, device="cuda")


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device here")
def test_what_needs_a_gpu_is_refused_before_anything_is_loaded(llama_folder: Path):
    assert "leave it auto" in refusal(Path("no/such/model"), cuda_graphs="on")
    assert "--attention triton" in refusal(llama_folder, attention="triton")


def test_a_context_longer_than_the_model_was_built_for_is_refused(llama_folder: Path):
    assert "1…128" in refusal(llama_folder, max_model_len=129)


def test_a_cache_too_small_for_the_asked_length_is_refused(llama_folder: Path):
    assert "--kv-cache-gib" in refusal(llama_folder, num_blocks=5, max_model_len=128)
    assert "--kv-cache-gib" in refusal(llama_folder, num_blocks=2)


def test_without_an_asked_length_the_context_is_what_the_cache_holds(llama_folder: Path):
    assert start(llama_folder, num_blocks=5).info.max_model_len == 31
    assert start(llama_folder).info.max_model_len == 128


def test_the_self_check_refuses_wrong_attention(llama_folder: Path, monkeypatch: pytest.MonkeyPatch):
    right = sdpa_attention.RowGroup.mask

    def one_key_too_many(self: sdpa_attention.RowGroup, window: int | None) -> torch.Tensor:
        return torch.roll(right(self, window), -1, -1)

    monkeypatch.setattr(sdpa_attention.RowGroup, "mask", one_key_too_many)
    assert "differ from its own" in refusal(llama_folder, cpu_backend="torch")


def test_a_head_of_another_model_is_refused(llama_folder: Path, tmp_path: Path):
    other = save_random_model(LlamaConfig(**SIZES), tmp_path / "other", seed=1)
    head = save_random_head(tmp_path, other, "kind")
    with pytest.raises(HeadError, match="kind"):
        start(llama_folder, heads=(head,))


def test_a_corrupt_head_is_refused(llama_folder: Path, tmp_path: Path):
    head = save_random_head(tmp_path, llama_folder, "kind")
    (head / "head.safetensors").write_bytes(b"not safetensors")
    with pytest.raises(HeadError, match=r"head\.safetensors"):
        start(llama_folder, heads=(head,))
    manifest = json.loads((head / "head.json").read_text())
    (head / "head.json").write_text(json.dumps({**manifest, "surprise": 1}))
    with pytest.raises(HeadError, match="surprise"):
        start(llama_folder, heads=(head,))
