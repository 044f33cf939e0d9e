"""Table of a fitted head: what its strengths buy and cost, from the report of its judging."""

from __future__ import annotations

import json

from rich.console import Console
from rich.table import Table

from trimtab.guidance.evaluation.table import NOTHING, show
from trimtab.guidance.statistics import Estimate
from trimtab.server.commands.fit.config import FitConfig


def final_table(config: FitConfig) -> str:
    """For a terminal."""
    report = json.loads((config.run / "eval" / "report.json").read_text(encoding="utf-8"))
    frontier = report["frontier"]
    (curve,) = [curve for curve in frontier["curves"] if curve["name"] == config.name]
    points = curve["points"]
    plain = next(point for point in points if point["knob"] == 0)
    scores = list(plain["scores"])
    table = Table(
        *("strength", "KL (nats per reply)", *scores, "wins over plain", "perplexity ÷ plain"),
        *("distinct-2", "tokens", "ended"),
        title=f"head {config.name}, by {frontier['num_prompts']} prompts that it was not trained on",
        caption="means with 95 % intervals; gold: " + (config.gold or config.reward),
        title_justify="left",
    )
    for point in points:
        wins = next((point["scores"][name]["win_rate"] for name in scores), None) if point["knob"] else None
        table.add_row(
            f"{point['knob']:g}",
            show(Estimate(**point["kl"])),
            *(_shown(point["scores"][name]["estimate"]) for name in scores),
            NOTHING if wins is None else f"{wins['mean']:.0%}",
            _ratio(point["perplexity"], plain["perplexity"]),
            NOTHING if point["variety"] is None else f"{point['variety']['across']['distinct_2']:.2f}",
            f"{point['length']:.0f}",
            f"{point['stopped']:.0%}",
        )
    console = Console(width=140)
    with console.capture() as shown:
        console.print(table)
    return shown.get().rstrip()


def _shown(estimate: dict[str, float] | None) -> str:
    return show(Estimate(**estimate) if estimate else None)


def _ratio(number: float | None, by: float | None) -> str:
    return NOTHING if number is None or not by else f"{number / by:.2f}"
