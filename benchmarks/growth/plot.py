"""Plot of a sweep: time per token of each series, and the floor under them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from trimtab.guidance.files import whole_file

_COLOURS = {"plain": "#5f6368", "lowrank": "#0b6e99", "tied": "#d9730d"}
_LABELS = {"plain": "plain", "lowrank": "guided, low-rank", "tied": "guided, tied"}
_FLOOR = "#b0b0b0"
_LOGARITHMIC = {"rows"}  # a token's share of the weights falls by two orders of magnitude


def plot_sweep(report: Mapping[str, Any], name: str, path: Path) -> None:
    """Writes a PNG of one sweep of a growth report."""
    sweep = report["sweeps"][name]
    points = sweep["points"]
    xs = [point["x"] for point in points]
    figure = Figure(figsize=(6.4, 4.4), dpi=150, layout="constrained")
    axes = figure.subplots()
    for series in points[0]["milliseconds_per_token"]:
        times = [point["milliseconds_per_token"][series] for point in points]
        axes.plot(xs, times, marker="o", markersize=4, color=_COLOURS[series], label=_LABELS[series])
    floors = [point["floor"] for point in points]
    axes.plot(xs, floors, linestyle="--", color=_FLOOR, label=_floor_label(points))
    bottom = min(floors) / 2 if name in _LOGARITHMIC else 0.0
    axes.fill_between(xs, bottom, floors, color=_FLOOR, alpha=0.2, linewidth=0)
    axes.set_yscale("log" if name in _LOGARITHMIC else "linear")
    axes.set_ylim(bottom=bottom)
    axes.set_xscale("log", base=2)
    axes.set_xticks(xs, [f"{x / 1000:g}k" if x % 1000 == 0 else f"{x:g}" for x in xs])
    axes.set_xlabel(sweep["axis"])
    axes.set_ylabel("milliseconds per token")
    axes.set_title(f"{sweep['fixed']}\n{report['machine']}", fontsize=9)
    axes.grid(color="#e6e6e6", linewidth=0.8)
    axes.set_axisbelow(True)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    axes.legend(frameon=False)
    with whole_file(path) as new:
        figure.savefig(new, format=path.suffix[1:])


def _floor_label(points: list[dict[str, Any]]) -> str:
    kinds = list(dict.fromkeys(point["floor_is"] for point in points))
    return f"floor: {', then '.join(kinds)}"
