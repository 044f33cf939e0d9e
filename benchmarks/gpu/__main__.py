"""GPU suite: checks and measures the kernels and the engine: python -m benchmarks.gpu

Ends within --budget seconds, the most telling cases first; a JSON line follows every result. The last line is
one JSON document, also written to --out after every case. Exits with 0 only if nothing failed and every check
was answered.
"""

from __future__ import annotations

import json
import os
import shlex
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from benchmarks.common import parse
from benchmarks.gpu import cache
from benchmarks.gpu.findings import Report
from benchmarks.gpu.machine import missing_gpu, open_gpu, open_rehearsal, process_age
from benchmarks.gpu.registry import PARTS, ordered_cases
from benchmarks.gpu.runner import STOP_SECONDS, Runner

BUDGET = 420.0
MAX_JOBS = 16


@dataclass(frozen=True, slots=True)
class SuiteConfig:
    """part: of the suite. budget: seconds of the whole run. out: where the report is written.
    cache: Triton's, as `make gpu-cache` fills it. jobs: processes that fill it first, where it serves nothing
    here; 0 leaves that to the cases; without it one for each core, at most 16. only: run these cases alone.
    rehearse: run the cases at toy sizes on the CPU; TRITON_INTERPRET=1 takes the Triton kernels along.
    """

    part: Literal["kernels", "engine", "all"] = "all"
    budget: float = BUDGET
    out: Path | None = None
    cache: Path = cache.FOLDER
    jobs: int | None = None
    only: tuple[str, ...] = ()
    rehearse: bool = False

    def __post_init__(self) -> None:
        known = [case for name, part in PARTS.items() if self.part in (name, "all") for case in part.cases]
        for case in self.only:
            if case not in known:
                raise ValueError(f"there is no case {case!r}; there are: {', '.join(known)}")


def main() -> int:
    options = parse(SuiteConfig, __doc__)
    reason = None if options.rehearse else missing_gpu()
    if reason is not None:
        print(f"error: {reason}", file=sys.stderr)
        return 1
    deadline = time.monotonic() + options.budget - process_age()
    report = Report(_command(options), options.rehearse, options.out)
    if not options.rehearse:
        _prepare_cache(options, report)
    cases = {
        (part, name): entry
        for (part, name), entry in ordered_cases(options.rehearse).items()
        if options.part in (part, "all") and name in (options.only or (name,))
    }
    open_machine = open_rehearsal if options.rehearse else open_gpu
    left = deadline - time.monotonic() - STOP_SECONDS
    Runner(cases, open_machine, seconds=left).run(report, say=lambda line: print(line, flush=True))
    report.save()
    print(json.dumps(report.as_dict(), allow_nan=False), flush=True)
    return 0 if report.is_ok else 1


def _prepare_cache(options: SuiteConfig, report: Report) -> None:
    """Adopt the cache of programs that came along; where it is no good, compile all that at once."""
    report.cache["carried"] = cache.adopt(options.cache)
    report.cache["is_used"] = cache.serves_here()
    jobs = min(MAX_JOBS, os.cpu_count() or 1) if options.jobs is None else options.jobs
    if jobs and not report.cache["is_used"]:
        start = time.monotonic()
        filled = cache.fill(options.cache, jobs)
        report.cache["compiled"] = len(list(options.cache.glob("*/*.cubin"))) - report.cache["carried"]
        report.cache["seconds"] = round(time.monotonic() - start, 1)
        report.cache["errors"] = len(filled.errors)
        for error in filled.errors:
            print(f"error: {error}", file=sys.stderr)
    print(json.dumps({"cache": report.cache}), flush=True)


def _command(options: SuiteConfig) -> str:
    """What to type to run this again; reports are committed, so it holds no path."""
    words = ["python -m benchmarks.gpu", f"--part {options.part}"]
    if options.budget != BUDGET:
        words.append(f"--budget {options.budget:g}")
    if options.only:
        words.append("--only " + " ".join(shlex.quote(case) for case in options.only))
    if options.rehearse:
        words.append("--rehearse")
    return " ".join(words)


if __name__ == "__main__":
    sys.exit(main())
