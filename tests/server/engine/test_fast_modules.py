from pathlib import Path

import pytest
import torch
from torch import nn

from trimtab.server.engine.fast_modules import can_pack, pack_linears
from trimtab.server.engine.policy import load_served

pytestmark = pytest.mark.skipif(
    not can_pack(torch.device("cpu"), torch.float32), reason="this torch has no oneDNN packed product"
)


@pytest.mark.parametrize("rows", [1, 3, 17, 64])
@pytest.mark.parametrize("has_bias", [False, True])
def test_packed_products_equal_the_plain_ones(rows: int, has_bias: bool):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(33, 70, bias=has_bias), nn.Linear(70, 5, bias=has_bias))
    x = torch.randn(1, rows, 33)
    with torch.inference_mode():
        want = model(x)
        pack_linears(model)
        got = model(x)
    assert torch.allclose(got, want, atol=1e-5)
    assert "partial" in repr(model[0].forward), "the packed product is what ran"


def test_only_fp32_on_a_cpu_is_packed():
    assert not can_pack(torch.device("meta"), torch.float32)
    assert not can_pack(torch.device("cpu"), torch.bfloat16)


def test_the_output_embedding_is_packed_once(llama_folder: Path):
    policy = load_served(llama_folder)
    lm_head = policy.model.get_output_embeddings()
    assert lm_head.forward.args[0] is policy.packed_lm_head
    h = torch.randn(2, policy.lm_head.shape[1])
    assert torch.allclose(policy.project(h), nn.functional.linear(h, policy.lm_head), atol=1e-5)
