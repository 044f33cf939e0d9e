"""Runs a file of tests in a process that had TRITON_INTERPRET set when it imported Triton."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

BLAS = {"OPENBLAS_CORETYPE": "Nehalem"}
"""Of the interpreter's products, which are numpy's: there a row's bits do not depend on its place in a tile.
They do in Haswell's kernel, which numpy takes on CPUs that it does not know."""


def run_interpreted(suite: Path) -> None:
    """Fails with the output of the tests in `suite` where one of them does."""
    run = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--durations=5", str(suite)],
        env={**os.environ, **BLAS, "TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    print(run.stdout)
    assert run.returncode == 0, run.stdout + run.stderr
