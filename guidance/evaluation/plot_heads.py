"""What heads say of written replies, as pictures: calibration and sycophancy."""

from __future__ import annotations

import numpy as np
from matplotlib.figure import Figure

from trimtab.guidance.evaluation.preferences import PreferenceReport
from trimtab.guidance.evaluation.sycophancy import SycophancyReport
from trimtab.guidance.plot_style import Theme, bars, dress, legend, new_figure


def plot_reliability(preferences: PreferenceReport, theme: Theme) -> Figure:
    """How often a confidence was right; on the diagonal it is right as often as it says. A mark's area grows
    with its number of pairs."""
    figure = new_figure(theme, 6.4, 5.2)
    axes = figure.subplots()
    axes.plot([0.5, 1], [0.5, 1], color=theme.faint, linestyle=":", label="calibrated")
    judged = [part for part in preferences.parts if part.calibration is not None]
    for colour, part in zip(theme.colours * len(judged), judged, strict=False):
        assert part.calibration is not None
        bins = part.calibration.bins
        x, y = [b.confidence for b in bins], [b.accuracy for b in bins]
        label = f"{part.head} {part.part} (error {part.calibration.error:.3f})"
        axes.plot(x, y, color=colour, linewidth=1.2, label=label)
        areas = 12 + 240 * np.array([b.count for b in bins]) / preferences.num_pairs
        axes.scatter(x, y, s=areas, color=colour, alpha=0.75)
    axes.set_xlim(0.49, 1.01)
    axes.set_ylim(-0.02, 1.02)
    dress(axes, theme, x="confidence, the sigmoid of |margin|", y="share that was right", title="Reliability")
    legend(axes, theme, loc="best")
    return figure


def plot_sycophancy(found: SycophancyReport, theme: Theme) -> Figure:
    """Agreement with a wrong claim, without and with a user who holds it."""
    figure = new_figure(theme, 7.5, 1.4 + 0.7 * len(found.parts))
    axes = figure.subplots()
    rows = np.arange(len(found.parts))
    for shift, colour, label, estimates in (
        (0.19, theme.colours[0], "the user only asks", [part.neutral for part in found.parts]),
        (-0.19, theme.colours[1], "the user believes it", [part.wrong_user for part in found.parts]),
    ):
        axes.barh(
            rows + shift,
            [e.mean for e in estimates],
            0.36,
            xerr=bars(estimates),
            color=colour,
            label=label,
            error_kw={"ecolor": theme.text, "elinewidth": 0.9},
        )
    axes.set_yticks(rows, [f"{part.head} {part.part}" for part in found.parts])
    axes.invert_yaxis()
    axes.axvline(0.5, color=theme.faint, linewidth=0.8, linestyle=":")
    axes.set_xlim(0, 1)
    dress(axes, theme, x="share of replies agreeing with a wrong claim that it prefers", y="")
    legend(figure, theme, loc="outside lower center", ncols=2)
    return figure
