"""Judgement of one head, for its card: reads an evaluation's report and makes tables of it."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trimtab.guidance.errors import HeadError
from trimtab.guidance.evaluation.table import NOTHING, Table, number, show, show_difference
from trimtab.guidance.statistics import Estimate

REPORT_FILE = "report.json"
PICTURES = {
    "frontier": "Scores against KL.",
    "reliability": "How often a confidence was right.",
    "overoptimisation": "Gold and proxy against √KL.",
    "variety": "Variety and fluency against KL.",
    "sycophancy": "Agreement with a wrong claim, without and with a user who holds it.",
}
"""File names, without .png, with their captions; in the order of a card."""


@dataclass(frozen=True, slots=True)
class Judgement:
    """pictures: PNG files of the report with their captions."""

    tables: tuple[Table, ...]
    pictures: tuple[tuple[Path, str], ...]


def read_judgement(folder: Path, name: str) -> Judgement:
    """What the report that `trimtab eval` wrote to `folder` says about the head of this name.

    Raises:
        HeadError: there is no report, or it does not judge the head.
    """
    path = folder / REPORT_FILE
    try:
        report = json.loads(path.read_text(encoding="utf-8"))
        made = (section(report, name) for section in SECTIONS)
        tables = tuple(table for table in made if table is not None and table.rows)
    except FileNotFoundError:
        raise HeadError(f"{folder} has no {REPORT_FILE}: name a folder that `trimtab eval` wrote") from None
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        reason = f"{type(error).__name__}: {error}".splitlines()[0]
        raise HeadError(f"{path} cannot be read as a report of `trimtab eval` ({reason})") from error
    if not tables:
        raise HeadError(f"{path} does not judge a head named {name!r}: judge it with `trimtab eval`")
    pictures = ((folder / f"{picture}.png", caption) for picture, caption in PICTURES.items())
    return Judgement(tables, tuple((path, caption) for path, caption in pictures if path.is_file()))


def _preferences(report: dict[str, Any], name: str) -> Table | None:
    found = report["preferences"]
    rows = [
        (
            part["part"],
            _show(part["accuracy"], percent=True),
            _show(part["above_length"], percent=True, sign=True),
        )
        for part in _of_head(found, name)
    ]
    if found is None or not rows:
        return None  # no such section, or it does not judge this head
    length = found["length"]
    rows.append(
        (f"length alone: pick the {length['rule']}", _show(length["accuracy"], percent=True), NOTHING)
    )
    return Table(
        "preferences",
        "Preferences",
        ("part", "accuracy", "above length"),
        tuple(rows),
        f"{found['num_pairs']} pairs of {found['num_prompts']} prompts.",
    )


def _strengths(report: dict[str, Any], name: str) -> Table | None:
    """The head's own curve."""
    frontier = report["frontier"]
    points = [p for curve in _curves(frontier) if curve["name"] == name for p in curve["points"]]
    if not points:
        return None
    rows = (
        (
            f"{point['knob']:g}",
            _show(point["kl"]),
            *(_show(point["scores"][score]["estimate"]) for score in frontier["gold"]),
            number(point["perplexity"]),
            number(point["variety"] and point["variety"]["across"]["distinct_2"]),
        )
        for point in points
    )
    return Table(
        "frontier",
        "What a strength buys, and what it costs",
        ("strength", "KL (nats per reply)", *frontier["gold"], "perplexity under the policy", "distinct-2"),
        tuple(rows),
        f"{frontier['num_prompts']} prompts. Strength 0 is the plain policy."
        + "".join(f" Left out: {problem}." for problem in frontier["problems"]),
    )


def _at_kl(report: dict[str, Any], name: str) -> Table | None:
    """The head's curve beside all others that are no head's, with the prices that they do not reach."""
    frontier = report["frontier"]
    heads = [curve["name"] for curve in _curves(frontier)]
    if name not in heads:
        return None
    every = [*frontier["at_kl"], *frontier["unreached"]]
    shown = [row for row in every if row["curve"] == name or row["curve"] not in heads]
    shown = [row for row in shown if row["score"] in frontier["gold"]]
    rows = (
        (
            f"{row['kl']:g}",
            row["curve"],
            row["score"],
            _show(row["estimate"]) if "estimate" in row else _missed(row),
            _difference(row.get("above_baseline")),
            _difference(row.get("above_best_of_n")),
        )
        for row in sorted(shown, key=lambda row: (row["score"], row["kl"], row["curve"] != name))
    )
    baseline = frontier["baseline"] or "baseline"
    return Table(
        "equal-kl",
        "At equal KL",
        ("KL (nats per reply)", "curve", "score", "estimate", f"from {baseline}", "from best-of-n"),
        tuple(rows),
        "Between the points of a curve. Best-of-n stands at the bound log n - (n-1)/n. Intervals of "
        f"differences hold for all {frontier['num_comparisons']} of the evaluation at once; above and below "
        "are said only where these leave out zero.",
    )


def _missed(row: dict[str, Any]) -> str:
    return NOTHING if row["most"] is None else f"not reached (most: {row['most']:.2f})"


def _difference(estimate: dict[str, float] | None) -> str:
    return show_difference(None if estimate is None else Estimate(**estimate))


def _turns(report: dict[str, Any], name: str) -> Table | None:
    frontier = report["frontier"]
    found = frontier["overoptimisation"] if frontier else ()
    rows = []
    for row in found:
        turn = row["turn"]
        if row["curve"] == name and turn is not None:
            has_turned = "yes" if turn["has_turned"] else "no"
            rows.append((row["gold"], f"{turn['knob']:g}", _show(turn["drop"], sign=True), has_turned))
    columns = ("score", "highest at strength", "falls from there by", "overoptimised")
    note = "Overoptimised: the score has fallen by more than its interval while the proxy did not fall."
    return Table("overoptimisation", "Overoptimisation", columns, tuple(rows), note) if rows else None


def _sycophancy(report: dict[str, Any], name: str) -> Table | None:
    found = report["sycophancy"]
    rows = [
        (
            part["part"],
            _show(part["wrong_user"], percent=True),
            _show(part["neutral"], percent=True),
            _show(part["swayed"], percent=True, sign=True),
        )
        for part in _of_head(found, name)
    ]
    columns = ("part", "agrees with a wrong user", "with a wrong claim alone", "swayed by")
    note = "Swayed by: what the user's opinion changes; above zero is sycophancy."
    return Table("sycophancy", "Sycophancy", columns, tuple(rows), note) if rows else None


SECTIONS: tuple[Callable[[dict[str, Any], str], Table | None], ...] = (
    _preferences,
    _strengths,
    _at_kl,
    _turns,
    _sycophancy,
)


def _curves(frontier: dict[str, Any] | None) -> list[dict[str, Any]]:
    """Those of heads."""
    return [curve for curve in frontier["curves"] if curve["kind"] == "head"] if frontier else []


def _of_head(section: dict[str, Any] | None, name: str) -> Sequence[dict[str, Any]]:
    return [part for part in section["parts"] if part["head"] == name] if section else []


def _show(estimate: dict[str, float] | None, *, percent: bool = False, sign: bool = False) -> str:
    return show(None if estimate is None else Estimate(**estimate), percent=percent, sign=sign)
