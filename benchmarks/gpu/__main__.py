"""GPU suite: checks and measures the kernels and the engine: python -m benchmarks.gpu

Ends within --budget seconds, the most telling cases first; a JSON line follows every result. The last line is
one JSON document, also written to --out after every case. Exits with 0 only if nothing failed and every check
was answered.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import sys
import time
from pathlib import Path

from benchmarks.gpu import cache
from benchmarks.gpu.findings import Report
from benchmarks.gpu.machine import missing_gpu, open_gpu, open_rehearsal, process_age
from benchmarks.gpu.registry import PARTS, ordered_cases
from benchmarks.gpu.runner import STOP_SECONDS, Runner

BUDGET = 420.0
MAX_JOBS = 16


def main() -> int:
    options = _parse()
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


def _prepare_cache(options: argparse.Namespace, report: Report) -> None:
    """Adopt the cache of programs that came along; where it is no good, compile all that at once."""
    report.cache["carried"] = cache.adopt(options.cache)
    report.cache["is_used"] = cache.serves_here()
    if options.jobs and not report.cache["is_used"]:
        start = time.monotonic()
        filled = cache.fill(options.cache, options.jobs)
        report.cache["compiled"] = len(list(options.cache.glob("*/*.cubin"))) - report.cache["carried"]
        report.cache["seconds"] = round(time.monotonic() - start, 1)
        report.cache["errors"] = len(filled.errors)
        for error in filled.errors:
            print(f"error: {error}", file=sys.stderr)
    print(json.dumps({"cache": report.cache}), flush=True)


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.gpu",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--part", choices=[*PARTS, "all"], default="all")
    parser.add_argument("--out", type=Path, help="where the report is written")
    parser.add_argument(
        "--budget", type=float, default=BUDGET, metavar="SECONDS", help="for the whole run (%(default)g)"
    )
    parser.add_argument(
        "--cache",
        type=Path,
        default=cache.FOLDER,
        help="Triton's, as `make gpu-cache` fills it (%(default)s)",
    )
    parser.add_argument(
        "--jobs",
        type=int,
        default=min(MAX_JOBS, os.cpu_count() or 1),
        help="processes that fill the cache first, where it serves nothing here; 0 leaves it to the cases",
    )
    parser.add_argument("--only", nargs="+", default=[], metavar="CASE", help="run these cases alone")
    parser.add_argument(
        "--rehearse",
        action="store_true",
        help="run the cases at toy sizes on the CPU; TRITON_INTERPRET=1 takes the Triton kernels along",
    )
    options = parser.parse_args()
    known = [case for name, part in PARTS.items() if options.part in (name, "all") for case in part.cases]
    for case in options.only:
        if case not in known:
            parser.error(f"there is no case {case!r}; there are: {', '.join(known)}")
    return options


def _command(options: argparse.Namespace) -> str:
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
