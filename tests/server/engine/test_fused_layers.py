from __future__ import annotations

import gc

import pytest
import torch
from tiny_models import SIZES
from torch import Tensor, nn
from transformers import (
    AutoModelForCausalLM,
    Gemma2Config,
    GraniteConfig,
    LlamaConfig,
    MistralConfig,
    PretrainedConfig,
    Qwen2Config,
    Qwen3Config,
)

from trimtab.kernels.silu_mul import silu_mul
from trimtab.server.engine import fused_layers
from trimtab.server.engine.fused_layers import _rotate_and_attend, fuse_layers

TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 5e-2, torch.float16: 5e-3}


class Attention:
    """In the place of paged attention: the same over the tokens at hand."""

    def __init__(self) -> None:
        self.num_calls = 0

    def rotate_and_attend(self, module: nn.Module, qkv: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        self.num_calls += 1
        return _rotate_and_attend(module, qkv, cos, sin)


def make_model(config: PretrainedConfig, dtype: torch.dtype = torch.float32) -> nn.Module:
    torch.manual_seed(0)
    attention = "eager" if isinstance(config, Gemma2Config) else "sdpa"
    model = AutoModelForCausalLM.from_config(config, dtype=dtype, attn_implementation=attention).eval()
    for name, parameter in model.requires_grad_(False).named_parameters():
        if "norm" in name or "bias" in name:
            parameter.normal_(1.0, 0.3)
    return model


@pytest.mark.parametrize("dtype", list(TOLERANCE), ids=str)
@pytest.mark.parametrize(
    "config",
    [
        LlamaConfig(**SIZES),
        LlamaConfig(**SIZES, attention_bias=True),
        MistralConfig(**SIZES, head_dim=8, sliding_window=None),
        Qwen2Config(**SIZES),
    ],
    ids=["llama", "llama with biases", "mistral", "qwen2"],
)
def test_every_layer_is_fused_and_the_logits_stay(config: PretrainedConfig, dtype: torch.dtype):
    model, attention, ids = make_model(config, dtype), Attention(), torch.arange(20)[None]
    before = model(ids, use_cache=False).logits.float()
    for _ in range(2):  # once more changes nothing
        assert fuse_layers(model, attention.rotate_and_attend) == 3
        attention.num_calls = 0
        after = model(ids, use_cache=False).logits.float()
        assert attention.num_calls == 3
        assert (after - before).abs().max() <= TOLERANCE[dtype] * before.abs().max()


def test_merged_weights_are_the_modules_own():
    model, attention = make_model(LlamaConfig(**SIZES)), Attention()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    held = dict(model.named_parameters())
    fuse_layers(model, attention.rotate_and_attend)
    after = model.state_dict()
    assert all(parameter is held[name] for name, parameter in model.named_parameters()), "nor anyone else's"
    assert all(torch.equal(after[name], value) for name, value in before.items())
    layer = model.model.layers[0].self_attn
    shared = {
        linear.weight.untyped_storage().data_ptr() for linear in (layer.q_proj, layer.k_proj, layer.v_proj)
    }
    assert len(shared) == 1, "and take no memory of their own"


@pytest.mark.parametrize(
    "config",
    [
        Gemma2Config(**SIZES, head_dim=8),
        Qwen3Config(**SIZES, head_dim=8),
        GraniteConfig(**SIZES, residual_multiplier=0.5),
        LlamaConfig(**SIZES, hidden_act="gelu"),
        LlamaConfig(**SIZES, mlp_bias=True),
    ],
    ids=["gemma2", "qwen3", "granite", "gelu", "biases in the mlp"],
)
def test_layers_of_another_formula_stay_as_they_are(config: PretrainedConfig):
    model, ids = make_model(config), torch.arange(20)[None]
    before = model(ids, use_cache=False).logits
    assert fuse_layers(model, Attention().rotate_and_attend) == 0
    assert torch.equal(model(ids, use_cache=False).logits, before)


def test_a_fused_forward_that_is_wrong_is_seen_by_the_probe(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(fused_layers, "silu_mul", lambda gate_up: silu_mul(gate_up) * 1.001)
    assert fuse_layers(make_model(LlamaConfig(**SIZES)), Attention().rotate_and_attend) == 0


def test_under_another_attention_a_layer_is_its_own_again_and_the_first_may_be_gone():
    model, attention, ids = make_model(LlamaConfig(**SIZES)), Attention(), torch.arange(20)[None]
    before = model(ids, use_cache=False).logits
    fuse_layers(model, attention.rotate_and_attend)
    del attention
    gc.collect()
    model.set_attn_implementation("eager")
    torch.testing.assert_close(model(ids, use_cache=False).logits, before)
