"""Verdict on a trained part: puts its held-out figures, read from a manifest's metrics, in words."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

MIN_JUDGED = 10
"""Rows, below which a share or a correlation is no figure, and a spread no unit."""
PARTS = ("reward", "value", "advantage")
Metrics = Mapping[str, float]


@dataclass(frozen=True, slots=True)
class Verdict:
    """words: whether anything was learned, on how many rows. figures: that say so. has_learned: None where
    there are too few rows to tell."""

    words: str
    figures: str
    has_learned: bool | None

    def __str__(self) -> str:
        return f"{self.words} ({self.figures})" if self.figures else self.words


def verdicts(metrics: Metrics) -> dict[str, Verdict]:
    """By part; a part that was not judged, as in manifests of before there were verdicts, has none."""
    found = {part: _verdict(part, metrics) for part in PARTS}
    return {part: verdict for part, verdict in found.items() if verdict is not None}


def metrics_in(metrics: Metrics) -> set[str]:
    """The names of the metrics that verdicts are read from, and tell."""
    counted = ("pairs", "labels", "correlated", "judged", "validation_is_shared")
    told = {
        f"{part}_{name}" for part in PARTS for name in (*counted, "loss", "loss_of_nothing", "correlation")
    }
    ends = ("_gain", "_above_length", "_low", "_high")
    return {name for name in metrics if name in told or name.endswith(ends)}


def _verdict(part: str, metrics: Metrics) -> Verdict | None:
    if part == "advantage" and "score_gain" in metrics:
        return _of_scores(metrics)
    for told, judge in ((f"{part}_pairs", _of_pairs), (f"{part}_labels", _of_labels)):
        if told in metrics:
            return judge(part, int(metrics[told]), metrics)
    if f"{part}_correlated" in metrics:
        return _of_correlation(part, int(metrics[f"{part}_correlated"]), metrics)
    if f"{part}_judged" in metrics:
        return _of_loss(part, int(metrics[f"{part}_judged"]), metrics)
    return None


def _of_pairs(part: str, num: int, metrics: Metrics) -> Verdict:
    rows = "1 pair" if num == 1 else f"{num} pairs"
    if f"{part}_accuracy" not in metrics:
        return _too_few(part, rows, metrics)
    low, high = (metrics[f"{part}_accuracy_{end}"] for end in ("low", "high"))
    shown = _percent("accuracy", f"{part}_accuracy", metrics)
    above = f"{part}_above_length"
    if above in metrics:
        length = metrics[f"{part}_accuracy"] - metrics[above]
        shown += f", length alone {length:.1%}"
    words = _chance(low, high, 0.5)
    if words == "better than chance" and above in metrics:
        words = (
            "better than chance and than length"
            if metrics[f"{above}_low"] > 0
            else f"{words}, no better than length,"
        )
    return Verdict(
        f"{words} on {rows}", _joined(shown, _loss(part, metrics), _shared(part, metrics)), low > 0.5
    )


def _of_labels(part: str, num: int, metrics: Metrics) -> Verdict:
    rows, name = "1 labelled reply" if num == 1 else f"{num} labelled replies", f"label_{part}_accuracy"
    if name not in metrics:
        return _too_few(part, rows, metrics)
    return _of_figure(part, rows, name, _percent("good above bad", name, metrics), 0.5, metrics)


def _of_correlation(part: str, num: int, metrics: Metrics) -> Verdict:
    rows, name = "1 reply" if num == 1 else f"{num} replies", f"{part}_correlation"
    if name not in metrics:
        return _too_few(part, rows, metrics)
    low, high = metrics[f"{name}_low"], metrics[f"{name}_high"]
    shown = f"correlation with the return {metrics[name]:.3f} [{low:.3f}, {high:.3f}]"
    return _of_figure(part, rows, name, shown, 0, metrics)


def _of_figure(part: str, rows: str, name: str, shown: str, chance: float, metrics: Metrics) -> Verdict:
    """Of a figure with an interval, which is `chance` where nothing was learned."""
    low, high = metrics[f"{name}_low"], metrics[f"{name}_high"]
    figures = _joined(shown, _loss(part, metrics), _shared(part, metrics))
    return Verdict(f"{_chance(low, high, chance)} on {rows}", figures, low > chance)


def _of_loss(part: str, num: int, metrics: Metrics) -> Verdict:
    rows = "1 row" if num == 1 else f"{num} rows"
    if num < MIN_JUDGED:
        return _too_few(part, rows, metrics)
    low, high = (metrics[f"{part}_gain_{end}"] for end in ("low", "high"))
    words = _chance(low, high, 0).replace("chance", "knowing nothing")
    return Verdict(f"{words} on {rows}", _joined(_loss(part, metrics), _shared(part, metrics)), low > 0)


def _of_scores(metrics: Metrics) -> Verdict:
    num = int(metrics["score_prompts"])
    rows = "1 prompt" if num == 1 else f"{num} prompts"
    if num < MIN_JUDGED:
        return Verdict(f"too few to tell ({rows})", "", None)
    low, high = metrics["score_gain_low"], metrics["score_gain_high"]
    words = _chance(low, high, 0).replace("chance", "the plain policy")
    figures = f"score {_interval('score', metrics)}, plain {_interval('base_score', metrics)}"
    return Verdict(f"{words} on {rows}", figures, low > 0)


def _chance(low: float, high: float, chance: float) -> str:
    if low > chance:
        return "better than chance"
    return "worse than chance" if high < chance else "no better than chance"


def _too_few(part: str, rows: str, metrics: Metrics) -> Verdict:
    return Verdict(f"too few to tell ({rows})", _loss(part, metrics), None)


def _loss(part: str, metrics: Metrics) -> str:
    if f"{part}_loss" not in metrics:
        return ""
    nothing = metrics[f"{part}_loss_of_nothing"]
    return f"held-out loss {metrics[f'{part}_loss']:.4g}, knowing nothing {nothing:.4g}"


def _shared(part: str, metrics: Metrics) -> str:
    return "the same rows chose its epoch" if metrics.get(f"{part}_validation_is_shared") else ""


def _percent(title: str, name: str, metrics: Metrics) -> str:
    low, high = metrics[f"{name}_low"], metrics[f"{name}_high"]
    return f"{title} {metrics[name]:.1%} [{100 * low:.1f}, {100 * high:.1f}]"


def _interval(name: str, metrics: Metrics) -> str:
    return f"{metrics[name]:.4g} [{metrics[f'{name}_low']:.4g}, {metrics[f'{name}_high']:.4g}]"


def _joined(*parts: str) -> str:
    return "; ".join(part for part in parts if part)
