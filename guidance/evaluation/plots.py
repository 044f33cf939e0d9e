"""Pictures of a report: scores, variety and overoptimisation against KL, calibration, sycophancy, steps."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from trimtab.guidance.evaluation.curve import Curve, CurveKind, CurvePoint
from trimtab.guidance.evaluation.overoptimisation import FORMS, BendFit
from trimtab.guidance.evaluation.preferences import PreferenceReport
from trimtab.guidance.evaluation.report import EvaluationReport, FrontierReport
from trimtab.guidance.evaluation.steps import NUM_PLACES, StepsReport
from trimtab.guidance.evaluation.sycophancy import SycophancyReport
from trimtab.guidance.plot_style import Theme, bars, dress, legend, new_figure
from trimtab.guidance.statistics import Estimate

LINES: dict[CurveKind, dict[str, Any]] = {
    "head": {"linestyle": "-", "marker": "o"},
    "static_bias": {"linestyle": "--", "marker": "s"},
    "best_of_n": {"linestyle": ":", "marker": "^"},
    "system_prompt": {"linestyle": "none", "marker": "*"},
    "activation_steering": {"linestyle": "--", "marker": "v"},
    "external": {"linestyle": "-.", "marker": "D"},
}

_PRICE = "KL from the policy (nats per reply, √ scale)"
_COST = "tokens computed for each token of a reply"
_MAX_WITH_KNOBS = 5
_MAX_PANELS = 6
_POINTS, _HANDLE_POINTS = 5.0, 42.0  # of a character of a legend, and of what stands beside its text
_ROW_INCHES = 0.18  # of a legend, beyond the three rows that a figure has room for
Read = Callable[[CurvePoint], float | None]
Draw = Callable[[Theme], Figure]
MEASURES: dict[str, Read] = {
    "distinct-2 across prompts": lambda p: p.variety.across.distinct_2 if p.variety else None,
    "self-BLEU within prompts": lambda p: p.variety.within.self_bleu if p.variety else None,
    "self-BLEU across prompts": lambda p: p.variety.across.self_bleu if p.variety else None,
    "entropy (nats per token)": lambda p: p.entropy,
    "perplexity under the policy": lambda p: p.perplexity,
    "tokens per reply": lambda p: p.length,
}


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
        if frontier.at_cost:
            caption = "Scores against the tokens that the model was run on, with 95 % intervals."
            pictures.append(Picture("cost", "equal-cost", caption, partial(plot_cost, frontier)))
        if frontier.overoptimisation:
            caption = "Gold and proxy against √KL; the dotted line marks gold's highest point."
            draw = partial(plot_overoptimisation, frontier)
            pictures.append(Picture("overoptimisation", "overoptimisation", caption, draw))
    if report.sycophancy is not None and report.sycophancy.parts:
        caption = "Agreement with a wrong claim, without and with a user who holds it."
        draw = partial(plot_sycophancy, report.sycophancy)
        pictures.append(Picture("sycophancy", "sycophancy", caption, draw, True))
    if report.steps is not None:
        caption = "The mean value along right and wrong traces."
        pictures.append(Picture("steps", "steps", caption, partial(plot_steps, report.steps), True))
    return pictures


def plot_scores(frontier: FrontierReport, theme: Theme) -> Figure:
    """A panel per score: every curve against its price, with 95 % intervals both ways; rings mark the plain
    policy. Small numbers are knobs, on a page of few curves."""
    names = [name for name in frontier.score_names if _holders(frontier, name)][:_MAX_PANELS]
    figure, panels = _panels(theme, len(names), height=4.2)
    with_knobs = len(frontier.curves) <= _MAX_WITH_KNOBS
    for axes, name in zip(panels, names, strict=False):
        for curve, colour in _coloured(frontier, theme):
            for member in curve.members:
                _draw_member(axes, member, name, colour)
            _draw_score(axes, curve, name, colour, with_knobs)
        _price_axis(axes, frontier)
        dress(axes, theme, x=_PRICE, y="", title=_title(name, frontier))
    _share_legend(figure, panels, theme)
    return figure


def plot_cost(frontier: FrontierReport, theme: Theme) -> Figure:
    """A panel per gold score: every point but the plain policy's against what it costs in tokens; a tilt
    stands at 1."""
    names = [name for name in frontier.gold if _holders(frontier, name)][:_MAX_PANELS]
    figure, panels = _panels(theme, len(names), height=4.2)
    for axes, name in zip(panels, names, strict=False):
        for curve, colour in _coloured(frontier, theme):
            steered = [(point.cost, point) for point in curve.points if point.knob and point.cost]
            found = [(cost, e) for cost, p in steered if (e := _estimate(p, name)) is not None]
            if found:
                costs, estimates = zip(*sorted(found, key=lambda pair: pair[0]), strict=True)
                style = {"markersize": 4.5, "linewidth": 1.4, "elinewidth": 0.8, "capsize": 2}
                style |= LINES[curve.kind]
                means = [e.mean for e in estimates]
                axes.errorbar(costs, means, bars(estimates), color=colour, label=curve.name, **style)
        axes.set_xscale("log", base=2)
        axes.xaxis.set_major_formatter("{x:g}")
        dress(axes, theme, x=_COST, y="", title=_title(name, frontier))
    _share_legend(figure, panels, theme)
    return figure


def _estimate(point: CurvePoint, name: str) -> Estimate | None:
    return point.scores[name].estimate if name in point.scores else None


def plot_variety(frontier: FrontierReport, theme: Theme) -> Figure:
    """What steering costs beside KL: a panel per measure, curves that were sampled."""
    names = [name for name, read in MEASURES.items() if any(_series(c, read)[0] for c in frontier.curves)]
    figure, panels = _panels(theme, len(names), height=2.9, columns=3)
    for axes, name in zip(panels, names, strict=False):
        for curve, colour in _coloured(frontier, theme):
            x, y = _series(curve, MEASURES[name])
            if x:
                axes.plot(x, y, color=colour, label=curve.name, markersize=4, **LINES[curve.kind])
        _price_axis(axes, frontier)
        dress(axes, theme, x=_PRICE, y="", title=name)
    _share_legend(figure, panels, theme)
    return figure


def plot_overoptimisation(frontier: FrontierReport, theme: Theme) -> Figure:
    """A panel per curve: gold against √KL, the proxy on gold's scale, and the fits that the data carry."""
    curves = {curve.name: curve for curve in frontier.curves}
    found = frontier.overoptimisation[:_MAX_PANELS]
    figure, panels = _panels(theme, len(found), height=3.6)
    for axes, over in zip(panels, found, strict=False):
        curve = curves[over.curve]
        d, gold = _gains(curve, over.gold)
        axes.plot(d, gold, color=theme.colours[0], marker="o", label=over.gold)
        if over.proxy is not None:
            proxy_d, proxy = _gains(curve, over.proxy)
            span = max(np.abs(gold).max(), 1e-9) / max(np.abs(proxy).max(), 1e-9)
            label = f"{over.proxy}, times {span:.2g}"
            axes.plot(proxy_d, proxy * span, color=theme.colours[1], marker="s", linestyle="--", label=label)
        for fit in over.fits:
            if fit.is_carried:
                _draw_fit(axes, fit, float(d.max()), theme)
        if over.turn is not None:
            axes.axvline(over.turn.root_kl, color=theme.faint, linewidth=0.8, linestyle=":")
        dress(axes, theme, x="√KL", y="gain over plain", title=over.curve)
        legend(axes, theme)
    return figure


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


def plot_steps(found: StepsReport, theme: Theme) -> Figure:
    """The mean value at each tenth of the traces, right and wrong ones; a panel for each head."""
    figure = new_figure(theme, 7.5, 2.6 * len(found.heads))
    panels = figure.subplots(len(found.heads), 1, squeeze=False)[:, 0]
    places = np.arange(1, NUM_PLACES + 1) / NUM_PLACES
    for axes, head in zip(panels, found.heads, strict=True):
        for values, label, colour in zip(
            head.by_place, ("right", "wrong"), (theme.colours[0], theme.colours[1]), strict=True
        ):
            if values:
                axes.plot(places, values, marker="o", markersize=4, color=colour, label=label)
        dress(axes, theme, x="share of the trace", y=f"value of {head.head}")
    legend(figure, theme, loc="outside lower center", ncols=2)
    return figure


def _coloured(frontier: FrontierReport, theme: Theme) -> Iterator[tuple[Curve, str]]:
    """Best-of-n by gold, which the others are read against, in the colour of the text."""
    others = [c for c in frontier.curves if c.kind != "best_of_n" or c.proxy not in frontier.gold]
    free = [colour for colour in theme.colours if colour != theme.text]
    colours = {curve.name: free[i % len(free)] for i, curve in enumerate(others)}
    for curve in frontier.curves:
        yield curve, colours.get(curve.name, theme.text)


def _draw_member(axes: Any, curve: Curve, name: str, colour: str) -> None:
    """One training seed of a curve, lightly: the points of its mean stand among those of its seeds."""
    points = sorted((p for p in curve.points if name in p.scores), key=lambda p: p.knob)
    pairs = [(max(p.kl.mean, 0), e.mean) for p in points if (e := p.scores[name].estimate) is not None]
    style = {"linewidth": 0.7, "markersize": 3, "marker": "x", "alpha": 0.45, "zorder": 1.5}
    axes.plot([x for x, _ in pairs], [y for _, y in pairs], color=colour, **style)


def _draw_score(axes: Any, curve: Curve, name: str, colour: str, with_knobs: bool) -> None:
    scored = [p for p in curve.points if name in p.scores and p.scores[name].estimate is not None]
    if not scored:
        return
    scored = sorted(scored, key=lambda p: p.knob)
    estimates = [e for p in scored if (e := p.scores[name].estimate) is not None]
    x, y = [max(p.kl.mean, 0) for p in scored], [e.mean for e in estimates]
    axes.errorbar(
        x,
        y,
        bars(estimates),
        bars([p.kl for p in scored]),
        color=colour,
        label=_label(curve),
        linewidth=1.4,
        elinewidth=0.8,
        markersize=4.5,
        capsize=2,
        **LINES[curve.kind],
    )
    for point, at_x, at_y in zip(scored, x, y, strict=True):
        if point.knob == 0:
            axes.plot(at_x, at_y, marker="o", markersize=10, markerfacecolor="none", color=colour)
        elif with_knobs and (curve.kind != "best_of_n" or point is scored[-1]):
            offset = {"xytext": (4, -9), "textcoords": "offset points", "fontsize": 6.5}
            axes.annotate(f"{point.knob:.3g}", (at_x, at_y), color=colour, **offset)


def _label(curve: Curve) -> str:
    if curve.is_bound:
        return f"{curve.name} (at KL ≤)"
    return f"{curve.name} ({len(curve.members)} seeds)" if curve.members else curve.name


def _title(name: str, frontier: FrontierReport) -> str:
    kind = "gold" if name in frontier.gold else "proxy"
    return name if name == kind else f"{name} ({kind})"


def _draw_fit(axes: Any, fit: BendFit, end: float, theme: Theme) -> None:
    d = np.linspace(end / 100, end, 100)
    gain = fit.alpha.mean * d + fit.beta.mean * FORMS[fit.form](d)
    style = ("-", ":")[list(FORMS).index(fit.form)]
    axes.plot(d, gain, color=theme.faint, linewidth=1, linestyle=style, label=fit.form)


def _gains(curve: Curve, name: str) -> tuple[np.ndarray, np.ndarray]:
    """√KL and the score less that of the cheapest point, by growing KL, of points with knobs from 0 up."""
    points = sorted((p for p in curve.points if p.knob >= 0 and name in p.scores), key=lambda p: p.kl.mean)
    pairs = [(p.kl.mean, e.mean) for p in points if (e := p.scores[name].estimate) is not None]
    kl, score = np.array(pairs).T
    return np.sqrt(kl.clip(min=0)), score - score[0]


def _series(curve: Curve, read: Read) -> tuple[list[float], list[float]]:
    points = sorted(curve.points, key=lambda p: p.knob)
    pairs = [(max(p.kl.mean, 0), y) for p in points if (y := read(p)) is not None]
    return [x for x, _ in pairs], [y for _, y in pairs]


def _holders(frontier: FrontierReport, name: str) -> list[Curve]:
    return [
        curve
        for curve in frontier.curves
        if any(name in p.scores and p.scores[name].estimate is not None for p in curve.points)
    ]


def _panels(theme: Theme, count: int, *, height: float, columns: int = 2) -> tuple[Figure, Sequence[Any]]:
    columns = max(min(columns, count), 1)
    rows = -(-max(count, 1) // columns)
    figure = new_figure(theme, 11 if columns > 1 else 7.5, height * rows)
    panels = list(figure.subplots(rows, columns, squeeze=False).flat)
    for unused in panels[count:]:
        unused.set_axis_off()
    return figure, panels[:count]


def _price_axis(axes: Any, frontier: FrontierReport) -> None:
    highest = max((p.kl.high for curve in frontier.curves for p in curve.points), default=1.0)
    axes.set_xscale("function", functions=(lambda x: np.sqrt(np.clip(x, 0, None)), np.square))
    axes.set_xlim(0, max(highest, 1e-3) * 1.05)
    ticks = [t for t in (0, 0.1, 0.5, 1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024) if t <= highest * 1.05]
    spread = [t for t in ticks if t == 0 or t >= highest / 80]
    axes.set_xticks(spread, [f"{t:g}" for t in spread])


def _share_legend(figure: Figure, panels: Sequence[Any], theme: Theme) -> None:
    shown: dict[str, Any] = {}
    for axes in panels:
        handles, labels = axes.get_legend_handles_labels()
        for handle, label in zip(handles, labels, strict=True):
            shown.setdefault(label, handle)
    columns = _columns(list(shown), 72 * figure.get_figwidth())
    num_rows = -(-len(shown) // columns)
    figure.set_figheight(figure.get_figheight() + _ROW_INCHES * max(num_rows - 3, 0))
    legend(
        figure,
        theme,
        handles=list(shown.values()),
        labels=list(shown),
        loc="outside lower center",
        ncols=columns,
    )


def _columns(labels: Sequence[str], width: float) -> int:
    """Of a legend in so many points, 4 at most: what is wider than the figure is cut off."""
    widest = max(map(len, labels), default=0)
    return max(1, min(len(labels), 4, int(width / (_HANDLE_POINTS + _POINTS * widest))))
