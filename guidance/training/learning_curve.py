"""Learning curves: draws each part's losses, in training and held out, beside that of knowing nothing."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from trimtab.guidance.files import write_bytes
from trimtab.guidance.training.checkpoint import last_checkpoint, read_log
from trimtab.guidance.training.convex_reward import FIT_FILE, Fit, read_fit
from trimtab.guidance.training.log import Points, TrainingLog

if TYPE_CHECKING:
    from trimtab.guidance.plot_style import Theme

PICTURE_FILE = "learning_curve.png"
_PARTS = ("reward", "value", "advantage")


def draw_learning_curves(run_folder: Path) -> Path | None:
    """run_folder/learning_curve.png: a panel for each part that was trained there; None where nothing was
    logged."""
    found = {part: seen for part in _PARTS if (seen := _read(run_folder / part)) is not None}
    if not found:
        return None
    from trimtab.guidance.plot_style import LIGHT, as_png, new_figure  # noqa: PLC0415  # matplotlib is heavy

    figure = new_figure(LIGHT, 4.2 * len(found), 3.1)
    for axes, (part, seen) in zip(
        figure.subplots(1, len(found), squeeze=False)[0], found.items(), strict=True
    ):
        if isinstance(seen, Fit):
            _draw_fit(axes, LIGHT, part, seen)
        else:
            _draw_log(axes, LIGHT, part, seen)
    path = run_folder / PICTURE_FILE
    write_bytes(path, as_png(figure))
    return path


def _read(folder: Path) -> Fit | TrainingLog | None:
    if (folder / FIT_FILE).is_file():
        fit = read_fit(folder)
        return fit if fit.curve else None
    checkpoint = last_checkpoint(folder)
    seen = TrainingLog() if checkpoint is None else read_log(checkpoint)
    return seen if seen.train or seen.held_out else None


def _draw_log(axes: Any, theme: Theme, part: str, seen: TrainingLog) -> None:
    _line(axes, seen.train, "training", theme.colours[0], "-")
    _line(axes, seen.held_out, "held out", theme.colours[1], "-")
    if seen.best_step is not None:
        axes.plot(
            *(seen.best_step, min(loss for _, loss in seen.held_out)),
            **{"marker": "o", "markersize": 9, "fillstyle": "none", "linestyle": "none"},
            color=theme.colours[1],
            label="kept",
        )
    _dress(axes, theme, seen.nothing, x="step", y="loss", title=part)


def _draw_fit(axes: Any, theme: Theme, part: str, fit: Fit) -> None:
    _line(axes, fit.curve, "cross-validated", theme.colours[1], "-")
    chosen = dict(fit.curve).get(fit.l2)
    if chosen is not None:
        axes.plot(
            *(fit.l2, chosen),
            **{"marker": "o", "markersize": 9, "fillstyle": "none", "linestyle": "none"},
            color=theme.colours[1],
            label="kept",
        )
    axes.set_xscale("log")
    axes.invert_xaxis()
    _dress(axes, theme, fit.nothing, x="L2 (weaker to the right)", y="loss", title=f"{part}, solved")


def _line(
    axes: Any, points: Points | tuple[tuple[float, float], ...], label: str, colour: str, line: str
) -> None:
    if points:
        x, y = zip(*points, strict=True)
        axes.plot(x, y, color=colour, linestyle=line, marker=".", linewidth=1.6, label=label)


def _dress(axes: Any, theme: Theme, nothing: float | None, *, x: str, y: str, title: str) -> None:
    from trimtab.guidance.plot_style import dress, legend  # noqa: PLC0415

    if nothing is not None:
        axes.axhline(nothing, color=theme.faint, linestyle="--", linewidth=1.2, label="knowing nothing")
    dress(axes, theme, x=x, y=y, title=title)
    legend(axes, theme)
