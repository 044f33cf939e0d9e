"""What can be said of the compiled kernels without a GPU."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

PROGRAM = Path(__file__).parent / "compile_kernels.py"


@pytest.fixture(scope="module")
def compiled(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    env = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    env["TRITON_CACHE_DIR"] = str(tmp_path_factory.mktemp("triton"))
    run = subprocess.run([sys.executable, str(PROGRAM)], env=env, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
    return json.loads(run.stdout)


def test_no_kernel_spills_registers(compiled: dict[str, dict[str, Any]]):
    assert len(compiled) == 79
    assert {name: found for name, found in compiled.items() if found["spilled_bytes"]} == {}


def test_bf16_heads_are_multiplied_by_tensor_cores(compiled: dict[str, dict[str, Any]]):
    assert compiled["value_adapter down bf16 sm_90"]["uses_tensor_cores"]


def test_attention_fits_the_shared_memory_of_small_gpus_and_uses_tensor_cores(
    compiled: dict[str, dict[str, Any]],
):
    attention = {name: found for name, found in compiled.items() if name.startswith(("decode", "prefill"))}
    assert len(attention) == 32
    for name, found in attention.items():
        assert found["shared_bytes"] <= 99 * 1024, name
        assert found["uses_tensor_cores"] == ("bfloat16" in name), name


def test_the_fused_head_divides_a_tile_s_tokens_among_the_warps_alike_for_every_number_of_rows(
    compiled: dict[str, dict[str, Any]],
):
    heads = {
        name: found for name, found in compiled.items() if name.startswith("head") and "bfloat16" in name
    }
    assert len(heads) == 9
    for name, found in heads.items():
        assert found["uses_tensor_cores"], name
        assert found["warps"] == ["[4, 1]"], name


def test_two_programs_of_the_fused_head_fit_into_an_h200_s_processor(compiled: dict[str, dict[str, Any]]):
    for name, found in compiled.items():
        if name.startswith("head") and name.endswith("sm_90"):
            assert 2 * (found["shared_bytes"] + 1024) <= 228 * 1024, name
            assert 2 * 128 * found["registers"] <= 65536, name
