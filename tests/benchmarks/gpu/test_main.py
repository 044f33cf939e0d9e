"""What who runs `make gpu` sees."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from benchmarks.common import parse
from benchmarks.gpu.__main__ import SuiteConfig

ROOT = Path(__file__).parents[3]
HTTP = ("fastapi", "pydantic", "starlette", "uvicorn", "sse_starlette", "tyro", "rich", "openai")
ABSENT = (*HTTP, "matplotlib", "sacrebleu", "datasets", "accelerate", "httpx", "hypothesis", "psutil")
ABSENT += ("pyarrow", "pandas")


def suite(
    *flags: str, without: tuple[str, ...] = (), cwd: Path | str = "/"
) -> subprocess.CompletedProcess[str]:
    """The suite on a bare checkout, in a Python that lacks some modules."""
    program = (
        "import runpy, sys\n"
        f"for name in {without!r}: sys.modules[name] = None\n"
        f"sys.argv = ['gpu', *{flags!r}]\n"
        "runpy.run_module('benchmarks.gpu', run_name='__main__', alter_sys=True)\n"
    )
    return subprocess.run(
        [sys.executable, "-c", program],
        capture_output=True,
        text=True,
        check=False,
        cwd=cwd,
        env={"PYTHONPATH": f"{ROOT / 'src'}:{ROOT}", "PATH": "", "OMP_NUM_THREADS": "1"},
    )


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_it_fails_and_says_why_in_one_line(tmp_path: Path):
    run = suite("--part", "all", "--out", str(tmp_path / "r.json"), without=ABSENT)
    assert run.returncode == 1
    assert run.stdout == ""
    (line,) = run.stderr.splitlines()
    assert "needs a CUDA device" in line
    assert not list(tmp_path.iterdir())


def test_a_bare_checkout_without_the_http_stack_rehearses_and_ends_with_one_json_line(tmp_path: Path):
    flags = ("--rehearse", "--part", "kernels", "--only", "store_kv", "--out", str(tmp_path / "r.json"))
    run = suite(*flags, without=ABSENT)
    assert run.returncode == 0, run.stderr
    last = json.loads(run.stdout.splitlines()[-1])
    assert last["rehearsal"] is True
    assert list(last["cases"]["kernels"]) == ["store_kv"]
    assert json.loads((tmp_path / "r.json").read_text())["cases"] == last["cases"]
    assert str(tmp_path) not in run.stdout, "reports are committed, and carry no path"


def test_the_budget_counts_from_the_start_of_the_process():
    """Importing torch takes longer than this one, and leaves no time for a case."""
    run = suite("--rehearse", "--budget", "5.5", "--part", "kernels", "--only", "store_kv")
    report = json.loads(run.stdout.splitlines()[-1])
    assert report["cases"]["kernels"]["store_kv"]["status"] == "not run"
    assert run.returncode == 1, "an unanswered check is no success"


def test_a_case_that_does_not_exist_is_refused(capsys: pytest.CaptureFixture[str]):
    with pytest.raises(SystemExit) as refused:
        parse(SuiteConfig, "", ["--rehearse", "--only", "nothing"])
    assert refused.value.code == 2
    assert "nothing" in capsys.readouterr().err
