"""Style of our pictures, on a light page and on a dark one."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from matplotlib.figure import Figure

from trimtab.guidance.statistics import Estimate


@dataclass(frozen=True, slots=True)
class Theme:
    background: str
    text: str
    faint: str
    grid: str
    colours: tuple[str, ...]


LIGHT = Theme(
    "#ffffff",
    "#1f2328",
    "#6a737d",
    "#e8eaed",
    (
        *("#0b6e99", "#d9730d", "#448361", "#9065b0", "#c14c8a", "#787774", "#b8860b", "#2f4b7c"),
        *("#1f2328", "#8c564b", "#17a398"),
    ),
)
DARK = Theme(
    "#161b22",
    "#e6edf3",
    "#8b949e",
    "#2b323b",
    (
        *("#58b4d9", "#f0a04b", "#7cc29a", "#b99ad8", "#ec82b6", "#a8a6a3", "#e3c04f", "#8fa8dc"),
        *("#e6edf3", "#c49a91", "#5fd3c8"),
    ),
)


def new_figure(theme: Theme, width: float, height: float) -> Figure:
    return Figure(figsize=(width, height), dpi=150, layout="constrained", facecolor=theme.background)


def as_png(figure: Figure) -> bytes:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", facecolor=figure.get_facecolor(), metadata={"Software": None})
    return buffer.getvalue()


def dress(axes: Any, theme: Theme, *, x: str, y: str, title: str = "") -> None:
    """Labels, grid and colours of one panel."""
    axes.set_facecolor(theme.background)
    axes.set_xlabel(x, color=theme.text, fontsize=9)
    axes.set_ylabel(y, color=theme.text, fontsize=9)
    axes.set_title(title, color=theme.text, fontsize=10, loc="left")
    axes.grid(color=theme.grid, linewidth=0.8)
    axes.set_axisbelow(True)
    axes.tick_params(colors=theme.faint, labelsize=8)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    for side in ("left", "bottom"):
        axes.spines[side].set_color(theme.faint)


def legend(holder: Any, theme: Theme, **settings: Any) -> None:
    """Of a figure or of one panel."""
    settings = {"frameon": False, "fontsize": 8, "labelcolor": theme.text} | settings
    holder.legend(**settings)


def bars(estimates: Sequence[Estimate]) -> list[list[float]]:
    """What reaches from the means to the ends of their intervals."""
    return [[max(e.mean - e.low, 0) for e in estimates], [max(e.high - e.mean, 0) for e in estimates]]
