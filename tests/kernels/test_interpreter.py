"""Runs the tests of the Triton kernels in a process that had TRITON_INTERPRET set when it imported Triton."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

FOLDER = Path(__file__).parent / "interpreted"
SUITES = sorted(path.name for path in FOLDER.glob("test_*.py"))


@pytest.mark.skipif(torch.cuda.is_available(), reason="they run natively in this process")
@pytest.mark.parametrize("suite", SUITES)
def test_triton_kernels_in_the_interpreter(suite: str):
    run = subprocess.run(
        [
            sys.executable,
            "-m",
            "pytest",
            "-q",
            "-p",
            "no:cacheprovider",
            "--durations=5",
            str(FOLDER / suite),
        ],
        env={**os.environ, "TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    print(run.stdout)
    assert run.returncode == 0, run.stdout + run.stderr
