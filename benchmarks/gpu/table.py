"""Tables of kernels/README.md, written from kernels/results: python -m benchmarks.gpu.table

Between the markers stands what was measured on a GPU and nothing else: of each device the newest report.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from benchmarks.common import write_tables
from benchmarks.gpu.findings import KIND

KERNELS = Path(__file__).resolve().parents[2] / "kernels"

BEGIN, END = "<!-- gpu tables: begin -->", "<!-- gpu tables: end -->"
NOTHING = (
    "No report from a GPU is committed: every figure of a GPU is open. `make gpu` on one writes a report."
)
Report = Mapping[str, Any]
Record = Mapping[str, Any]


def read_reports(folder: Path) -> list[Report]:
    """The suite's reports that are no rehearsals, oldest first."""
    documents = [json.loads(path.read_text(encoding="utf-8")) for path in sorted(folder.glob("*.json"))]
    ours = [d for d in documents if d.get("kind") == KIND and not d["rehearsal"]]
    return sorted(ours, key=lambda report: str(report["written"]))


def as_markdown(reports: Iterable[Report]) -> str:
    newest = _newest(reports)
    sections = [_section(part, device, *rest) for (part, device), rest in newest.items()]
    return "\n\n".join(sections) if sections else NOTHING


def _newest(reports: Iterable[Report]) -> dict[tuple[str, str], tuple[Report, dict[str, Record]]]:
    """By part and device: the newest report, with what older ones of the same sources answer beside it."""
    found: dict[tuple[str, str], tuple[Report, dict[str, Record]]] = {}
    for report in reports:
        for part, machine in report["machine"].items():
            key = (part, machine["device"])
            cases = report["cases"][part]
            answered = {name: case for name, case in cases.items() if case["status"] != "not run"}
            older, others = found.get(key, (report, {}))
            is_alike = older["sources"].get(part) == report["sources"].get(part)
            found[key] = (report, {**others, **answered} if is_alike else answered)
    return found


def _section(part: str, device: str, report: Report, cases: Mapping[str, Record]) -> str:
    machine = report["machine"][part]
    versions = ", ".join(f"{name} {machine[name]}" for name in ("torch", "triton", "transformers"))
    lines = [
        f"**{part.capitalize()} on {device}**, {versions}, copy {machine['copy_gb_per_second']:g} GB/s",
        f"({report['written'][:10]}, `{report['command']}`, sources `{report['sources'].get(part, '')}`)",
        "",
        *_checks(cases),
        *_aims(cases),
        *_times(cases),
        *_facts(cases),
    ]
    return "\n".join(lines).rstrip()


def _checks(cases: Mapping[str, Record]) -> Iterator[str]:
    checks = {name: record for name, record in cases.items() if record["kind"] == "check"}
    passed = [name for name, record in checks.items() if record["status"] == "passed"]
    yield f"Checks passed: {len(passed)} of {len(checks)} ({', '.join(passed) or 'none'})."
    for name, record in cases.items():
        if record["status"] in ("failed", "skipped"):
            reason = record["message"].strip().rpartition("\n")[2]
            yield f"\n{record['status'].capitalize()}: {name}: {reason}"
    yield ""


def _aims(cases: Mapping[str, Record]) -> Iterator[str]:
    aims = [aim for record in cases.values() for aim in record.get("aims", ())]
    if not aims:
        return
    yield "| ratio | measured | aim | |"
    yield "|---|---|---|---|"
    for aim in aims:
        bound = f"≥ {aim['at_least']:.3g}" if aim["at_least"] is not None else f"≤ {aim['at_most']:.3g}"
        value = "none" if aim["value"] is None else f"{aim['value']:.3g}"
        yield f"| {aim['what']} | {value} | {bound} | {'reached' if aim['is_reached'] else '**missed**'} |"
    yield ""


def _times(cases: Mapping[str, Record]) -> Iterator[str]:
    rows = [row for record in cases.values() for row in record.get("measurements", ())]
    if not rows:
        return
    yield "| op | shape | rows | floor, µs | µs (p10…p90) | of the floor | ÷ others |"
    yield "|---|---|---|---|---|---|---|"
    for row in rows:
        time = row["microseconds"]
        floor = "" if row["floor_microseconds"] is None else f"{row['floor_microseconds']:.4g}"
        share = "" if row["of_floor"] is None else f"{row['of_floor']:.0%}"
        others = ", ".join(f"{name} {other['ratio']:.2g}" for name, other in row["against"].items())
        spread = f"{time['median']:.4g} ({time['p10']:.4g}…{time['p90']:.4g})"
        yield f"| {row['op']} | {row['shape']} | {row['rows']} | {floor} | {spread} | {share} | {others} |"
    yield ""


def _facts(cases: Mapping[str, Record]) -> Iterator[str]:
    for name, record in cases.items():
        facts = {fact.replace("_", " "): value for fact, value in record.get("facts", {}).items()}
        if record["kind"] == "benchmark" and "peak_memory_gib" in record:
            facts["peak memory"] = f"{record['peak_memory_gib']:.1f} GiB"
        if facts:
            yield f"- {name}: {', '.join(f'{fact} {value}' for fact, value in facts.items())}"


def main() -> None:
    write_tables(__doc__, KERNELS, (BEGIN, END), lambda results: as_markdown(read_reports(results)))


if __name__ == "__main__":
    main()
