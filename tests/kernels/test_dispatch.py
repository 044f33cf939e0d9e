from __future__ import annotations

import subprocess
import sys

import pytest
import torch

from trimtab.kernels import dispatch
from trimtab.kernels.dispatch import MAX_FUSED_GUIDED_ROWS, MAX_FUSED_ROWS, choose_backend, choose_head_path

CPU, CUDA = torch.device("cpu"), torch.device("cuda")


def test_the_device_chooses_and_a_name_overrides():
    assert choose_backend(CPU) == "reference"
    assert choose_backend(CUDA) == "triton"
    assert choose_backend(CUDA, "reference") == "reference"


def test_a_backend_that_does_not_exist_is_refused():
    with pytest.raises(ValueError, match="backend 'cuda' does not exist: use one of reference, triton"):
        choose_backend(CPU, "cuda")


def test_triton_by_name_runs_off_the_gpu_in_its_interpreter_alone(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    with pytest.raises(RuntimeError, match="needs a GPU, not cpu"):
        choose_backend(CPU, "triton")
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    assert choose_backend(CPU, "triton") == "triton"


def test_triton_by_name_is_refused_where_it_is_not_installed(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(dispatch, "triton", None)
    with pytest.raises(RuntimeError, match="needs triton: install it"):
        choose_backend(CUDA)


def test_rows_are_fused_on_the_gpu_while_they_are_few_and_nothing_needs_their_logits():
    free = {"guided": False, "device_type": "cuda", "needs_logits": False, "strict": False}
    assert choose_head_path(1, **free) == choose_head_path(MAX_FUSED_ROWS, **free) == "fused"
    assert choose_head_path(MAX_FUSED_ROWS + 1, **free) == "materialised"
    tilted = free | {"guided": True}
    assert choose_head_path(MAX_FUSED_GUIDED_ROWS, **tilted) == "fused"
    assert choose_head_path(MAX_FUSED_GUIDED_ROWS + 1, **tilted) == "materialised"
    assert choose_head_path(1, **free | {"needs_logits": True}) == "materialised"
    assert choose_head_path(1, **free | {"device_type": "cpu"}) == "materialised"


def test_strict_takes_one_path_for_every_batch():
    paths = {
        choose_head_path(rows, guided=guided, device_type="cuda", needs_logits=needs, strict=True)
        for rows in (1, MAX_FUSED_ROWS, MAX_FUSED_ROWS + 1)
        for needs in (False, True)
        for guided in (False, True)
    }
    assert paths == {"materialised"}


def test_kernels_import_and_run_on_the_cpu_without_triton():
    program = """
import sys
sys.modules["triton"] = None
import torch
from trimtab.kernels import base_statistics, guided_head, philox, tile_reduce, truncate, value_adapter
from trimtab.kernels.guided_logits import guided_logits
zero = torch.zeros(1, dtype=torch.long)
draw = guided_logits(torch.randn(1, 9), seeds=zero, positions=zero, choices=zero, temperature=torch.ones(1))
assert 0 <= draw.token < 9
"""
    subprocess.run([sys.executable, "-c", program], check=True)
