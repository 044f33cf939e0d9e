from __future__ import annotations

import pytest
import torch
from tiny_models import SIZES
from transformers import AutoModelForCausalLM, Gemma2Config, LlamaConfig, PretrainedConfig, Qwen3Config

from trimtab.server.engine.fused_norms import fuse_norms


def make_model(config: PretrainedConfig, dtype: torch.dtype) -> torch.nn.Module:
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config, dtype=dtype).eval().requires_grad_(False)
    for name, parameter in model.named_parameters():
        if "norm" in name:
            parameter.normal_(1.0, 0.3)
    return model


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize(
    ("config", "num_norms"), [(LlamaConfig(**SIZES), 7), (Qwen3Config(**SIZES, head_dim=8), 13)], ids=str
)
def test_every_norm_is_fused_and_the_logits_stay(
    config: PretrainedConfig, num_norms: int, dtype: torch.dtype
):
    model = make_model(config, dtype)
    ids = torch.arange(20)[None]
    before = model(ids).logits.float()
    assert fuse_norms(model) == num_norms
    assert fuse_norms(model) == num_norms, "once more changes nothing"
    after = model(ids).logits.float()
    tolerance = {torch.float32: 1e-5, torch.bfloat16: 5e-2, torch.float16: 5e-3}[dtype]
    assert (after - before).abs().max() <= tolerance * before.abs().max()


def test_norms_of_another_formula_stay_as_they_are():
    model = make_model(Gemma2Config(**SIZES, head_dim=8), torch.float32)
    ids = torch.arange(20)[None]
    before = model(ids).logits
    assert fuse_norms(model) == 0
    assert torch.equal(model(ids).logits, before)
