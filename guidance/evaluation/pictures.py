"""The pictures of a report, by the name of their file."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from matplotlib.figure import Figure

from trimtab.guidance.evaluation.plot_heads import plot_reliability, plot_sycophancy
from trimtab.guidance.evaluation.plots import plot_overoptimisation, plot_scores, plot_variety
from trimtab.guidance.evaluation.report import EvaluationReport
from trimtab.guidance.plot_style import Theme

Draw = Callable[[Theme], Figure]


@dataclass(frozen=True, slots=True)
class Picture:
    """table: the name of the table that it belongs to. caption: for readers who cannot see it, too.
    is_small: it needs no more than half a page."""

    name: str
    table: str
    caption: str
    draw: Draw
    is_small: bool = False


def all_pictures(report: EvaluationReport) -> list[Picture]:
    """In the order of the tables."""
    pictures = []
    if report.preferences is not None and any(part.calibration for part in report.preferences.parts):
        draw: Draw = partial(plot_reliability, report.preferences)
        pictures.append(
            Picture("reliability", "preferences", "How often a confidence was right.", draw, True)
        )
    if report.frontier is not None:
        frontier = report.frontier
        pictures += [
            Picture(
                "frontier",
                "frontier",
                "Scores against KL with 95 % intervals; rings are the plain policy, numbers knobs.",
                partial(plot_scores, frontier),
            ),
            Picture("variety", "variety", "Variety and fluency against KL.", partial(plot_variety, frontier)),
        ]
        if frontier.overoptimisation:
            caption = "Gold and proxy against √KL; the dotted line marks gold's highest point."
            draw = partial(plot_overoptimisation, frontier)
            pictures.append(Picture("overoptimisation", "overoptimisation", caption, draw))
    if report.sycophancy is not None and report.sycophancy.parts:
        caption = "Agreement with a wrong claim, without and with a user who holds it."
        draw = partial(plot_sycophancy, report.sycophancy)
        pictures.append(Picture("sycophancy", "sycophancy", caption, draw, True))
    return pictures
