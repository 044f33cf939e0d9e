"""Tables of examples/gold/README.md, made from evaluations: python -m examples.gold.table REPORT …"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tyro

from trimtab.guidance.errors import told_in_one_line
from trimtab.guidance.evaluation.table import Table, show, show_difference
from trimtab.guidance.json_file import load_json
from trimtab.guidance.statistics import Estimate
from trimtab.server.flags import parse

Row = Mapping[str, Any]
_TRIALS_SHOWN = 8


@dataclass(frozen=True)
class TableConfig:
    """Prints what evaluations of the gold task found, as Markdown tables.

    reports: report.json of each, which `trimtab eval` wrote.
    """

    reports: tyro.conf.Positional[tuple[Path, ...]]

    def __post_init__(self) -> None:
        if not self.reports:
            raise ValueError("reports: name a file or more")


def tables(report: Row) -> str:
    """What a report has to say, as Markdown: what curves score at equal KL, how far that is from best-of-n,
    what the replies are like there, and how the constant was chosen, where it was."""
    frontier = report["frontier"]
    parts = [_scores(frontier), _best_of_n(frontier), _beside(frontier)]
    if frontier["bias_trials"]:
        parts.append(_constant(frontier))
    return "\n".join(part for part in parts if part)


def _scores(frontier: Row) -> str:
    """Gold at equal KL, and in brackets by how much that is above the baseline, with the interval that holds
    for all differences of the report at once. A curve of several seeds shows each of theirs."""
    found, kls = _found(frontier), _kls(frontier)
    note = (
        f"Gold; in brackets the difference from {frontier['baseline'] or 'the baseline'} at the same KL. "
        f"Intervals of differences hold for all {frontier['num_comparisons']} of the evaluation at once."
    )
    rows = [
        [curve["name"], *(_score(frontier, found, curve["name"], kl) for kl in kls)]
        for curve in frontier["curves"]
    ]
    return _table(["curve", *(f"gold at {kl:g} nats" for kl in kls)], rows) + f"\n{note}\n"


def _score(frontier: Row, found: Mapping[tuple[str, float], Row], curve: str, kl: float) -> str:
    row = found.get((curve, kl))
    if row is None:
        return _missed(frontier, curve, kl)
    if row["above_baseline"] is None:
        shown = show(Estimate(**row["estimate"]))
    else:
        shown = f"{row['estimate']['mean']:.2f} ({show_difference(Estimate(**row['above_baseline']))})"
    seeds = ", ".join(f"{score:.2f}" for score in row["by_seed"])
    return shown + (f" {{{seeds}}}" if seeds else "")


def _best_of_n(frontier: Row) -> str:
    """By how much each curve is above best-of-n by gold at its KL, and what n that takes; "" without it."""
    name = next((c["name"] for c in frontier["curves"] if _is_best_of_gold(frontier, c)), None)
    if name is None:
        return ""
    found, kls = _found(frontier), _kls(frontier)
    rows = [
        [
            curve["name"],
            *(_difference(found.get((curve["name"], kl))) for kl in kls),
            "1",
        ]
        for curve in frontier["curves"]
        if curve["kind"] != "best_of_n"
    ]
    best = [found.get((name, kl)) for kl in kls]
    costs = " / ".join(f"{row['aside']['num_sampled']:.3g}" for row in best if row)
    rows.append(
        [f"{name}, itself", *(f"{row['estimate']['mean']:.2f}" if row else "" for row in best), costs]
    )
    columns = ["from best-of-n at its KL (≤)", *(f"at {kl:g} nats" for kl in kls), "samples per reply"]
    return _table(columns, rows)


def _is_best_of_gold(frontier: Row, curve: Row) -> bool:
    return curve["kind"] == "best_of_n" and curve["proxy"] == frontier["gold"][0]


def _difference(row: Row | None) -> str:
    if row is None or row["above_best_of_n"] is None:
        return ""
    return show_difference(Estimate(**row["above_best_of_n"]))


def _beside(frontier: Row) -> str:
    """Length beside density, and KL per token beside KL per reply."""
    bounds = {curve["name"] for curve in frontier["curves"] if curve["is_bound"]}
    forms = {
        "kl_per_token": ".4f",
        "length": ".1f",
        "stopped": ".0%",
        "perplexity": ".1f",
        "distinct_2": ".3f",
    }
    rows = [
        [
            ("≤ " if curve in bounds else "") + f"{kl:g}",
            curve,
            *(_number(row["aside"][name], form) for name, form in forms.items()),
        ]
        for (curve, kl), row in sorted(_found(frontier).items(), key=lambda item: item[0][1])
    ]
    return _table(
        ["KL per reply", "curve", "KL per token", "tokens", "stopped", "perplexity", "distinct-2"], rows
    )


def _constant(frontier: Row) -> str:
    trials, kls = frontier["bias_trials"], _kls(frontier)
    rows = [
        [
            f"{trial['setting']['discount']:g}",
            f"{trial['setting']['shrinkage']:g}",
            f"{trial['num_tokens']}" + (" (all)" if trial["setting"]["max_tokens"] is None else ""),
            f"{trial['slope']:.2f}",
            *([_number(score, ".2f") for score in trial["scores"]] or [""] * len(kls)),
            "chosen" if trial["is_chosen"] else "",
        ]
        for trial in trials[:_TRIALS_SHOWN]
    ]
    columns = ["discount", "shrinkage", "tokens", "gain ÷ √KL", *(f"at {kl:g} nats" for kl in kls), ""]
    return (
        _table(columns, rows) + f"\nThe best {len(rows)} of {len(trials)} settings, on the tuning prompts.\n"
    )


def _found(frontier: Row) -> dict[tuple[str, float], Row]:
    """Of the first gold score, by curve and KL."""
    return {
        (row["curve"], row["kl"]): row for row in frontier["at_kl"] if row["score"] == frontier["gold"][0]
    }


def _kls(frontier: Row) -> list[float]:
    return sorted({row["kl"] for row in (*frontier["at_kl"], *frontier["unreached"])})


def _missed(frontier: Row, curve: str, kl: float) -> str:
    most = [r["most"] for r in frontier["unreached"] if (r["curve"], r["kl"]) == (curve, kl)]
    return f"not reached (most: {most[0]:.2f})" if most and most[0] is not None else ""


def _number(value: float | None, form: str) -> str:
    return "" if value is None else format(value, form)


def _table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    return Table("", "", tuple(columns), tuple(map(tuple, rows))).to_markdown()


def main(args: list[str] | None = None) -> None:
    with told_in_one_line("table"):
        config = parse(TableConfig, "python -m examples.gold.table", sys.argv[1:] if args is None else args)
        for path in config.reports:
            print(f"{path}\n\n{tables(load_json(path))}")


if __name__ == "__main__":
    main()
