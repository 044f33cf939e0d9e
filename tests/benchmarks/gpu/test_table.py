from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest

from benchmarks.common import Spread, replace_between_markers
from benchmarks.gpu.findings import Aim, Findings, Measurement, Report
from benchmarks.gpu.table import BEGIN, END, NOTHING, as_markdown, main, read_reports

MACHINE = {
    "device": "NVIDIA H200",
    "torch": "2.11",
    "triton": "3.6",
    "transformers": "5.17",
    "copy_gb_per_second": 4300.0,
}


def record(
    kind: str, status: str = "passed", findings: Findings | None = None, message: str = ""
) -> dict[str, Any]:
    return {"kind": kind, "status": status, "message": message, **(findings or Findings()).as_dict()}


def write(folder: Path, name: str, written: str, cases: dict[str, Any], rehearsal: bool = False) -> None:
    report = Report("python -m benchmarks.gpu --part kernels", rehearsal)
    report.machine["kernels"], report.cases["kernels"] = MACHINE, cases
    (folder / name).write_text(json.dumps({**report.as_dict(), "written": written}))


def times(median: float) -> Findings:
    findings = Findings()
    spread = Spread(median, median - 1, median + 1)
    findings.measurements.append(
        Measurement("head", "V=8", 16, spread, 244.0, {"torch": Spread(2 * median, 1, 9)})
    )
    findings.aims.append(Aim("of the bandwidth", 244 / median, at_least=0.9))
    return findings


def test_without_a_report_it_says_that_gpu_figures_are_open(tmp_path: Path):
    write(tmp_path, "rehearsal.json", "2026", {"a": record("check")}, rehearsal=True)
    (tmp_path / "growth-cpu.json").write_text(json.dumps({"kind": "trimtab growth"}))
    assert as_markdown(read_reports(tmp_path)) == NOTHING
    assert "open" in NOTHING


def test_the_newest_answer_to_every_case_is_told(tmp_path: Path):
    old = {"a": record("check"), "times": record("benchmark", findings=times(300.0))}
    new = {
        "a": record("check", "failed", message="Traceback\nlogprob: 0.1, at most 0.0001"),
        "times": record("benchmark", "not run"),
    }
    write(tmp_path, "z-old.json", "2026-01-01", old)
    write(tmp_path, "a-new.json", "2026-02-02", new)
    table = as_markdown(read_reports(tmp_path))
    assert "Checks passed: 0 of 1" in table
    assert "Failed: a: logprob: 0.1, at most 0.0001" in table
    assert "| head | V=8 | 16 | 244 | 300 (299…301) | 81% | torch 0.5 |" in table
    assert "| of the bandwidth | 0.813 | ≥ 0.9 | **missed** |" in table
    assert table.count("NVIDIA H200") == 1


def test_an_answer_about_other_sources_is_not_told(tmp_path: Path):
    write(tmp_path, "old.json", "2026-01-01", {"times": record("benchmark", findings=times(300.0))})
    old = json.loads((tmp_path / "old.json").read_text())
    (tmp_path / "old.json").write_text(json.dumps(old | {"sources": {"kernels": "other"}}))
    write(tmp_path, "new.json", "2026-02-02", {"a": record("check")})
    table = as_markdown(read_reports(tmp_path))
    assert "Checks passed: 1 of 1 (a)." in table
    assert "head" not in table


def test_the_kernels_page_says_what_the_committed_reports_say():
    kernels = Path(__file__).parents[3] / "kernels"
    page = (kernels / "README.md").read_text(encoding="utf-8")
    tables = as_markdown(read_reports(kernels / "results"))
    assert replace_between_markers(page, BEGIN, END, tables) == page


def test_the_command_rewrites_the_page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    write(tmp_path, "gpu.json", "2026-01-01", {"times": record("benchmark", findings=times(250.0))})
    page = tmp_path / "README.md"
    page.write_text(f"# Kernels\n{BEGIN}{END}\n", encoding="utf-8")
    monkeypatch.setattr(sys, "argv", ["table", "--results", str(tmp_path), "--page", str(page)])
    main()
    assert "| of the bandwidth | 0.976 | ≥ 0.9 | reached |" in page.read_text(encoding="utf-8")
