"""Runs the tests of the engine on Triton kernels in a process that had TRITON_INTERPRET set when it began."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

FOLDER = Path(__file__).parent / "interpreted"
SUITES = sorted(path.name for path in FOLDER.glob("test_*.py"))


@pytest.mark.parametrize("suite", SUITES)
def test_the_engine_on_triton_kernels_in_the_interpreter(suite: str):
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
