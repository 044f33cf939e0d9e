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
    assert len(compiled) == 10
    assert {name: found for name, found in compiled.items() if found["spilled_bytes"]} == {}


def test_bf16_heads_are_multiplied_by_tensor_cores(compiled: dict[str, dict[str, Any]]):
    assert compiled["value_adapter down bf16"]["uses_tensor_cores"]
