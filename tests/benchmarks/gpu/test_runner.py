from __future__ import annotations

import json
import multiprocessing
from collections.abc import Callable
from pathlib import Path

import pytest
from gpu_cases import (
    dying,
    hanging,
    losing,
    one_form_raising,
    open_cpu,
    open_stand_in,
    raising,
    right,
    skipping,
    wrong,
)

from benchmarks.gpu.case import Case
from benchmarks.gpu.findings import Report
from benchmarks.gpu.machine import Machine
from benchmarks.gpu.runner import Runner


@pytest.fixture(scope="module", autouse=True)
def _imported_once() -> None:
    """Workers are forked from a process that has imported all they need and runs no thread."""
    context = multiprocessing.get_context("forkserver")
    # Installed packages by name: the server does not have this process's sys.path.
    context.set_forkserver_preload(["torch", "trimtab.kernels.dispatch", "gpu_cases"])
    first = context.Process(target=int)
    first.start()
    first.join()


def run(
    cases: dict[str, Case],
    report: Report,
    seconds: float = 100.0,
    open_machine: Callable[[], Machine] = open_cpu,
) -> dict[str, dict[str, object]]:
    said: list[str] = []
    keyed = {("part", name): (case, None) for name, case in cases.items()}
    Runner(keyed, open_machine, seconds=seconds, start_method="forkserver").run(report, said.append)
    for line in said:
        assert not line.startswith("{") or json.loads(line)
    return report.cases["part"]


@pytest.mark.parametrize(
    ("bad", "status", "message"),
    [
        (wrong, "failed", "error: nan, at most 0.5"),
        (raising, "failed", "no such thing"),
        (dying, "failed", "the process ended with code 7"),
        (hanging, "failed", "stopped after 1 s"),
        (skipping, "skipped", "not here"),
        (one_form_raising, "failed", "tied: RuntimeError: no such thing"),
    ],
)
def test_whatever_a_case_does_it_is_recorded_and_the_rest_still_run(bad, status: str, message: str):
    report = Report("", True)
    cases = {
        "before": Case("check", right, 10),
        "bad": Case("check", bad, 1),
        "after": Case("check", right, 10),
    }
    records = run(cases, report)
    assert [record["status"] for record in records.values()] == ["passed", status, "passed"]
    assert message in str(records["bad"]["message"])
    assert report.is_ok == (status == "skipped")


def test_when_the_time_is_over_the_running_case_is_stopped_and_the_rest_is_not_run():
    report = Report("", True)
    cases = {"a": Case("check", hanging, 50), "b": Case("check", right, 5), "c": Case("benchmark", right, 5)}
    records = run(cases, report, seconds=4)
    assert [record["status"] for record in records.values()] == ["failed", "not run", "not run"]
    assert not report.is_ok, "an unanswered check is no success"
    report = Report("", True)
    records = run({"a": Case("check", right, 5), "b": Case("benchmark", right, 5)}, report, seconds=-1)
    assert [record["status"] for record in records.values()] == ["not run", "not run"]


def test_what_a_case_found_before_it_failed_is_kept():
    cases = {"hangs": Case("check", hanging, 1), "raises": Case("check", one_form_raising, 5)}
    records = run(cases, Report("", True))
    assert records["hangs"]["limits"] == {"error": {"value": 0.1, "at_most": 0.5}}
    assert set(records["raises"]["limits"]) == {"plain", "low-rank"}
    assert list(records["raises"]["errors"]) == ["tied"]


def test_the_report_is_whole_on_disk_after_every_case(tmp_path: Path):
    seen = []

    class Watched(Report):
        def add(self, part: str, name: str, record: dict[str, object]) -> None:
            super().add(part, name, record)
            seen.append(list(json.loads((tmp_path / "out" / "r.json").read_text())["cases"]["part"]))

    report = Watched("command", False, tmp_path / "out" / "r.json")
    run({"a": Case("check", right, 5), "b": Case("check", raising, 5)}, report)
    assert seen == [["a"], ["a", "b"]]
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["r.json"]
    written = json.loads((tmp_path / "out" / "r.json").read_text())
    assert written["ok"] is False
    assert written["machine"]["part"]["backend"] == "reference"


def test_a_case_that_loses_the_device_is_followed_by_a_fresh_process():
    cases = {name: Case("check", run, 10) for name, run in {"a": losing, "b": right, "c": raising}.items()}
    records = run(cases, Report("", True), open_machine=open_stand_in)
    assert [record["status"] for record in records.values()] == ["failed", "passed", "failed"]
    assert [record["lost"] for record in records.values()] == [True, False, False]
    assert records["b"]["peak_memory_gib"] == 3.0


def test_a_report_without_a_case_is_no_success():
    assert not Report("", True).is_ok
