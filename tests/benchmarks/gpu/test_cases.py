"""Every case of the GPU suite works at toy sizes: no slip in one waits for a GPU to be found."""

from __future__ import annotations

import dataclasses
import importlib.util
import json
import os
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import pytest

from benchmarks.gpu.kernels import attention, guided_head, guided_logits, tilt
from benchmarks.gpu.kernels import guided_logits as draw_statistics
from benchmarks.gpu.kernels import truncate as truncation
from benchmarks.gpu.machine import Machine, open_rehearsal
from benchmarks.gpu.registry import PARTS
from benchmarks.gpu.runner import run_case

# At toy sizes a case that comes again at other sizes is the same.
FIRST_OF_EACH = {
    case.run: (part, name) for part, entry in PARTS.items() for name, case in reversed(entry.cases.items())
}
CASES = sorted(FIRST_OF_EACH.values())


@pytest.fixture(scope="module")
def machine() -> Machine:
    return open_rehearsal()


@pytest.mark.parametrize(("part", "name"), CASES, ids=[" ".join(case) for case in CASES])
def test_case_is_answered_at_toy_sizes(part: str, name: str, machine: Machine):
    record = run_case(PARTS[part].cases[name], machine, PARTS[part].toy)
    machine.release()
    if name == "paged_attention, invariance" or (
        name == "beside FlashInfer" and importlib.util.find_spec("flashinfer") is None
    ):
        assert record["status"] == "skipped"
        return
    assert record["status"] == "passed", record["message"]
    json.dumps(record, allow_nan=False)
    assert record["limits"] if record["kind"] == "check" else record["measurements"] or record["aims"]


def test_kernel_checks_pass_on_the_triton_kernels_in_the_interpreter():
    checks = [name for part, name in CASES if part == "kernels" and PARTS[part].cases[name].kind == "check"]
    checks.remove("draws follow the tilt")  # of many draws, each of which takes the interpreter long
    run = subprocess.run(
        [sys.executable, "-m", "benchmarks.gpu", "--rehearse", "--part", "kernels", "--only", *checks],
        env={**os.environ, "TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 0, run.stdout + run.stderr
    report = json.loads(run.stdout.splitlines()[-1])
    assert report["machine"]["kernels"]["backend"] == "triton"
    assert {record["status"] for record in report["cases"]["kernels"].values()} == {"passed"}


def scaled(op: Callable[..., Any], name: str, factor: float) -> Callable[..., Any]:
    """The op with one argument a little off."""
    return lambda *args, **arguments: op(*args, **arguments | {name: factor * arguments[name]})


@pytest.mark.parametrize(
    ("case", "module", "op", "wrong"),
    [
        ("guided_head", guided_head, "guided_head", lambda op: scaled(op, "beta", 1.01)),
        ("guided_logits", guided_logits, "guided_logits", lambda op: scaled(op, "temperature", 3)),
        ("paged_attention", attention, "paged_attention", lambda op: scaled(op, "scale", 1.02)),
        ("store_kv", attention, "store_kv", lambda op: lambda *args, **arguments: None),
        ("truncation", truncation, "truncation_threshold", lambda op: scaled(op, "top_p", 0.9)),
        ("truncation", truncation, "truncate_and_draw", lambda op: scaled(op, "temperature", 1.5)),
        ("solve_tilt", tilt, "solve_tilt", lambda op: scaled(op, "kl_cap", 1.05)),
        ("solve_tilt", tilt, "solve_tilt", lambda op: scaled(op, "lift", 0.9)),
        ("draws follow the tilt", draw_statistics, "guided_logits", lambda op: scaled(op, "beta", 0.0)),
        (
            "draws follow the tilt",
            draw_statistics,
            "truncate_and_draw",
            lambda op: scaled(op, "temperature", 9.0),
        ),
    ],
)
def test_an_op_that_is_wrong_fails_its_check(
    case: str, module: Any, op: str, wrong: Any, machine: Machine, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(module, op, wrong(getattr(module, op)))
    sizes = dataclasses.replace(PARTS["kernels"].toy, num_draws=5000)
    assert run_case(PARTS["kernels"].cases[case], machine, sizes)["status"] == "failed"
