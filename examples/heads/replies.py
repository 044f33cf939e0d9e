"""Replies of the four heads verbatim, with their measures: python -m examples.heads.replies FOLDER"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tyro

from trimtab.guidance.data.row_files.source import raw_rows
from trimtab.guidance.errors import told_in_one_line
from trimtab.guidance.evaluation.table import Table, show
from trimtab.guidance.json_file import load_json
from trimtab.guidance.statistics import Estimate
from trimtab.server.flags import parse

Row = Mapping[str, Any]
SHOWN_PROMPTS, SHOWN_STRENGTHS = 10, (-2.0, -1.0, 0.0, 1.0, 2.0)


@dataclass(frozen=True)
class RepliesConfig:
    """Prints what `trimtab eval` measured of a head, and its replies to ten prompts at five strengths, as
    Markdown.

    evaluation: folder with report.json and replies.jsonl.
    """

    evaluation: tyro.conf.Positional[Path]


def measured(report: Row) -> str:
    """What a head does at each strength, as a Markdown table: every score, KL, perplexity and variety."""
    frontier = report["frontier"]
    head = next(curve for curve in frontier["curves"] if curve["knob"] == "strength")
    points = head["points"]
    plain = next(point for point in points if point["knob"] == 0)
    names = list(plain["scores"])
    columns = (
        "strength",
        *names,
        "KL per reply",
        "perplexity ÷ plain",
        "distinct-2 ÷ plain",
        "ended",
        "tokens",
    )
    rows = []
    for point in sorted(points, key=lambda point: float(point["knob"])):
        found = [point["scores"][name]["estimate"] for name in names]
        rows.append(
            (
                f"{point['knob']:+g}",
                *(show(Estimate(**estimate) if estimate else None) for estimate in found),
                f"{point['kl']['mean']:.2f}",
                f"{point['perplexity'] / plain['perplexity']:.2f}",
                f"{point['variety']['across']['distinct_2'] / plain['variety']['across']['distinct_2']:.2f}",
                f"{point['stopped']:.0%}",
                f"{point['length']:.0f}",
            )
        )
    return Table("strengths", "What the head does", columns, tuple(rows)).to_markdown()


def verbatim(replies: Sequence[Row]) -> str:
    """The first prompts with their first reply at each strength, as Markdown."""
    found = {
        (row["prompt"], float(row["knob"])): row
        for row in replies
        if row["sample"] == 0 and (row["curve"] == "plain" or row["curve"] == _head(replies))
    }
    prompts = sorted({prompt for prompt, _ in found})[:SHOWN_PROMPTS]
    return "\n".join(line for prompt in prompts for line in _of_prompt(found, prompt))


def _head(replies: Sequence[Row]) -> str:
    """The first curve that is not the plain policy: eval writes the head's first."""
    return next(str(row["curve"]) for row in replies if row["curve"] != "plain")


def _of_prompt(found: Mapping[tuple[int, float], Row], prompt: int) -> Iterator[str]:
    yield f"### {found[prompt, 0.0]['asked']}\n"
    for strength in SHOWN_STRENGTHS:
        row = found.get((prompt, strength))
        if row is not None:
            end = "" if row["finish_reason"] == "stop" else " …"
            yield f"**{strength:+g}** ({row['kl']:.1f} nats): {' '.join(row['text'].split())}{end}\n"


def main(args: list[str] | None = None) -> None:
    with told_in_one_line("replies"):
        given = sys.argv[1:] if args is None else args
        folder = parse(RepliesConfig, "python -m examples.heads.replies", given).evaluation
        report = load_json(folder / "report.json")
        replies = [row for _, row in raw_rows(folder / "replies.jsonl") if isinstance(row, dict)]
    print(measured(report))
    print(verbatim(replies))


if __name__ == "__main__":
    main()
