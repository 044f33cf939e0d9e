"""Runs the tests of the Triton kernels in the interpreter."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from interpreted_suite import run_interpreted

SUITES = sorted((Path(__file__).parent / "interpreted").glob("test_*.py"))


@pytest.mark.skipif(torch.cuda.is_available(), reason="they run natively in this process")
@pytest.mark.parametrize("suite", SUITES, ids=lambda suite: suite.name)
def test_triton_kernels_in_the_interpreter(suite: Path):
    run_interpreted(suite)
