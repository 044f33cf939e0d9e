"""Every case of the GPU suite works at toy sizes: no slip in one waits for a GPU to be found."""

from __future__ import annotations

import dataclasses
import importlib.util
import json
import os
import subprocess
import sys

import pytest
import torch

from trimtab.server.gpu.kernel_checks import guided_logits as check
from trimtab.server.gpu.machine import Machine, open_rehearsal
from trimtab.server.gpu.registry import PARTS
from trimtab.server.gpu.worker import run_case

CASES = [(part, name) for part, entry in PARTS.items() for name in entry.cases]


@pytest.fixture(scope="module")
def machine() -> Machine:
    return open_rehearsal()


@pytest.mark.parametrize(("part", "name"), CASES, ids=" ".join)
def test_case_is_answered_at_toy_sizes(part: str, name: str, machine: Machine):
    record = run_case(PARTS[part].cases[name], machine, PARTS[part].toy)
    if name == "beside FlashInfer" and importlib.util.find_spec("flashinfer") is None:
        assert record["status"] == "skipped"
        return
    assert record["status"] == "passed", record["message"]
    json.dumps(record, allow_nan=False)
    assert record["limits"] if record["kind"] == "check" else record["measurements"] or record["aims"]


def test_kernel_checks_pass_on_the_triton_kernels_in_the_interpreter():
    checks = [name for name, case in PARTS["kernels"].cases.items() if case.kind == "check"]
    checks.remove("draws follow the tilt")  # of many draws, each of which takes the interpreter long
    run = subprocess.run(
        [sys.executable, "-m", "trimtab.server.gpu", "--rehearse", "--part", "kernels", "--only", *checks],
        env={**os.environ, "TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 0, run.stdout + run.stderr
    report = json.loads(run.stdout.splitlines()[-1])
    assert report["machine"]["kernels"]["backend"] == "triton"
    assert {record["status"] for record in report["cases"]["kernels"].values()} == {"passed"}


def test_a_kernel_that_is_a_little_wrong_fails_its_check(machine: Machine, monkeypatch: pytest.MonkeyPatch):
    right = check.guided_logits

    def stronger(logits: torch.Tensor, **arguments: object) -> object:
        beta = arguments.pop("beta")
        assert isinstance(beta, torch.Tensor)
        return right(logits, **arguments, beta=1.01 * beta)  # type: ignore[arg-type]

    monkeypatch.setattr(check, "guided_logits", stronger)
    case = dataclasses.replace(PARTS["kernels"].cases["guided_logits"])
    record = run_case(case, machine, PARTS["kernels"].toy)
    assert record["status"] == "failed"
    assert "logprob" in record["message"]
