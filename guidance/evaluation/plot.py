"""The frontier as a picture: each score against strength, and against what it costs."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from trimtab.guidance.evaluation.report import FrontierPoint, FrontierReport
from trimtab.guidance.evaluation.statistics import Estimate

_COLOURS = ("#0b6e99", "#d9730d", "#448361", "#9065b0", "#c14c8a", "#787774")
_GREY = "#5f6368"
_MARKS: dict[str, Any] = {"marker": "o", "markersize": 5, "capsize": 3}


def plot_frontier(report: FrontierReport, path: Path, *, title: str = "") -> None:
    """Writes a PNG: on the left every score against strength, on the right against KL in nats per reply.
    Bars are 95 % intervals; the ring marks the plain policy, the numbers at the points are strengths."""
    figure = Figure(figsize=(11, 4.6), dpi=150, layout="constrained")
    left, right = figure.subplots(1, 2, sharey=True)
    for colour, name in zip(_COLOURS * len(report.score_names), report.score_names, strict=False):
        points = [p for p in report.points if p.scores[name].estimate is not None]
        scores = [_estimate(p, name) for p in points]
        _draw_against_strength(left, points, scores, colour, name)
        _draw_against_kl(right, points, scores, colour)
    _label(left, "strength", "judged score, mean and 95 % interval")
    _label(right, "KL from the plain policy (nats per reply)", "")
    left.set_xticks([p.strength for p in report.points])
    left.legend(frameon=False, loc="best")
    heads = ", ".join(f"{name}={weight:g}" for name, weight in report.heads)
    figure.suptitle(title or f"Heads: {heads} ({report.num_prompts} prompts)", fontsize=12)
    figure.savefig(path)


def _estimate(point: FrontierPoint, name: str) -> Estimate:
    estimate = point.scores[name].estimate
    assert estimate is not None
    return estimate


def _bars(estimates: Sequence[Estimate]) -> list[list[float]]:
    return [[e.mean - e.low for e in estimates], [e.high - e.mean for e in estimates]]


def _draw_against_strength(
    axes: Any, points: Sequence[FrontierPoint], scores: Sequence[Estimate], colour: str, name: str
) -> None:
    strengths = [p.strength for p in points]
    means = [s.mean for s in scores]
    axes.errorbar(strengths, means, _bars(scores), color=colour, label=name, **_MARKS)
    _ring(axes, points, strengths, means, colour)


def _draw_against_kl(
    axes: Any, points: Sequence[FrontierPoint], scores: Sequence[Estimate], colour: str
) -> None:
    kls = [p.kl for p in points]
    means = [s.mean for s in scores]
    axes.errorbar(
        [kl.mean for kl in kls],
        means,
        _bars(scores),
        _bars(kls),
        color=colour,
        linewidth=1,
        **_MARKS,
    )
    _ring(axes, points, [kl.mean for kl in kls], means, colour)
    for point, kl, mean in zip(points, kls, means, strict=True):
        if point.strength:
            axes.annotate(
                f"{point.strength:+g}",
                (kl.mean, mean),
                xytext=(6, 5),
                textcoords="offset points",
                color=colour,
                fontsize=8,
            )


def _ring(
    axes: Any, points: Sequence[FrontierPoint], xs: Sequence[float], ys: Sequence[float], colour: str
) -> None:
    for point, x, y in zip(points, xs, ys, strict=True):
        if point.strength == 0:
            axes.plot(x, y, marker="o", markersize=11, markerfacecolor="none", color=colour)


def _label(axes: Any, x: str, y: str) -> None:
    axes.set_xlabel(x)
    axes.set_ylabel(y)
    axes.grid(color="#e6e6e6", linewidth=0.8)
    axes.set_axisbelow(True)
    axes.tick_params(colors=_GREY)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    for side in ("left", "bottom"):
        axes.spines[side].set_color("#b0b0b0")
