from __future__ import annotations

import json
import math
import os
import time
from pathlib import Path

import pytest
import torch

from trimtab.server.gpu.case import Case, SkippedError
from trimtab.server.gpu.findings import Findings
from trimtab.server.gpu.machine import Machine
from trimtab.server.gpu.report import Report
from trimtab.server.gpu.runner import Runner


def open_machine() -> Machine:
    return Machine(torch.device("cpu"), "reference", 1e9)


def right(machine: Machine, sizes: object) -> Findings:
    findings = Findings()
    findings.require("error", torch.tensor([0.1, 0.2]), 0.5)
    return findings


def wrong(machine: Machine, sizes: object) -> Findings:
    findings = Findings()
    findings.require("error", torch.tensor([0.1, math.nan]), 0.5)
    return findings


def raising(machine: Machine, sizes: object) -> Findings:
    raise RuntimeError("no such thing")


def skipping(machine: Machine, sizes: object) -> Findings:
    raise SkippedError("not here")


def dying(machine: Machine, sizes: object) -> Findings:
    os._exit(7)


def hanging(machine: Machine, sizes: object) -> Findings:
    time.sleep(60)
    return Findings()


def run(cases: dict[str, Case], report: Report, seconds: float = 100.0) -> dict[str, dict[str, object]]:
    runner = Runner(cases, open_machine, None, seconds=seconds, start_method="fork")
    runner.run("part", report, say=lambda line: None)
    return report.cases["part"]


@pytest.mark.parametrize(
    ("bad", "status", "message"),
    [
        (wrong, "failed", "error: nan, at most 0.5"),
        (raising, "failed", "no such thing"),
        (dying, "failed", "the process ended with code 7"),
        (hanging, "failed", "stopped after 1 s"),
        (skipping, "skipped", "not here"),
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


def test_a_case_for_which_too_little_time_is_left_is_not_run():
    report = Report("", True)
    cases = {"a": Case("check", right, 5), "b": Case("check", right, 50), "c": Case("benchmark", right, 5)}
    records = run(cases, report, seconds=20)
    assert [record["status"] for record in records.values()] == ["passed", "not run", "passed"]
    assert not report.is_ok, "an unanswered check is no success"
    report = Report("", True)
    run({"a": Case("check", right, 5), "b": Case("benchmark", right, 50)}, report, seconds=20)
    assert report.is_ok, "a benchmark that did not fit is no failure"


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


def test_a_report_without_a_case_is_no_success():
    assert not Report("", True).is_ok
