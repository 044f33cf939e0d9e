"""Check and measure the kernels and the engine on this machine's GPU: python -m trimtab.server.gpu --part all

Each part ends within eight minutes. The last line is one JSON document, also written to --out after every
case. Exits with 0 only if nothing failed and every check was answered.
"""

from __future__ import annotations

import argparse
import json
import shlex
import sys
from pathlib import Path

from trimtab.server.gpu.machine import missing_gpu, open_gpu, open_rehearsal
from trimtab.server.gpu.registry import PARTS
from trimtab.server.gpu.report import Report
from trimtab.server.gpu.runner import Runner


def main() -> int:
    options = _parse()
    reason = None if options.rehearse else missing_gpu()
    if reason is not None:
        print(f"error: {reason}", file=sys.stderr)
        return 1
    report = Report(_command(options), options.rehearse, options.out)
    open_machine = open_rehearsal if options.rehearse else open_gpu
    for name, part in PARTS.items():
        if options.part in (name, "all"):
            cases = {key: case for key, case in part.cases.items() if key in (options.only or part.cases)}
            Runner(cases, open_machine, part.toy if options.rehearse else part.sizes).run(name, report)
    report.save()
    print(json.dumps(report.as_dict(), allow_nan=False), flush=True)
    return 0 if report.is_ok else 1


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m trimtab.server.gpu",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--part", choices=[*PARTS, "all"], default="all")
    parser.add_argument("--out", type=Path, help="where the report is written")
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
    words = ["python -m trimtab.server.gpu", f"--part {options.part}"]
    if options.only:
        words.append("--only " + " ".join(shlex.quote(case) for case in options.only))
    if options.rehearse:
        words.append("--rehearse")
    return " ".join(words)


if __name__ == "__main__":
    sys.exit(main())
