"""Curves at equal cost: what a point scores above best-of-n that runs the model on as many tokens."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from trimtab.guidance.evaluation.curve import Curve, CurvePoint, Judging
from trimtab.guidance.evaluation.seed_group import seed_weights
from trimtab.guidance.statistics import Estimate, Floats, interval, simultaneous

_NO_MORE = 1.25
"""Times what a plain reply costs: a point below it is compared at equal KL, not here."""


@dataclass(frozen=True, slots=True)
class AtCost:
    """One point of a curve beside best-of-n. cost: see CurvePoint. perplexity: as there.

    above: by the score that best-of-n chose by, how much this is above it; its n lies between two where no n
    costs just so. The intervals hold for all differences of the evaluation at once. above_alone: with an
    interval for each by itself.
    """

    curve: str
    knob: float
    score: str
    cost: float
    estimate: Estimate
    perplexity: float | None
    above: dict[str, Estimate] = field(default_factory=dict)
    above_alone: dict[str, Estimate] = field(default_factory=dict)


def at_equal_cost(curves: Sequence[Curve], scores: Sequence[str], judging: Judging) -> tuple[AtCost, ...]:
    """Every point that costs more than a plain reply, beside each best-of-n that can cost as much, read
    linearly in cost between one n and the next."""
    rivals = [curve for curve in curves if curve.kind == "best_of_n"]
    found: list[AtCost] = []
    moves: list[tuple[AtCost, str, Floats]] = []
    for score in scores:
        lines = [line for rival in rivals if (line := _line(rival, score, judging)) is not None]
        least = min((line.costs[0] for line in lines), default=np.inf)
        for curve in curves:
            for i, point in enumerate(curve.points if curve.kind != "best_of_n" else ()):
                column = _mean_column(curve, i, score, judging)
                if column is None or point.cost is None or point.cost < _NO_MORE * least:
                    continue
                estimate = interval(float(column[0]), column[1:])
                row = AtCost(curve.name, point.knob, score, point.cost, estimate, point.perplexity)
                found.append(row)
                moves += [
                    (row, line.by, column - line.scores_at(point.cost))
                    for line in lines
                    if line.costs[0] <= point.cost <= line.costs[-1]
                ]
    if moves:
        differences = np.stack([move for *_, move in moves])
        together = simultaneous(differences[:, 0], differences[:, 1:])
        for (row, by, move), estimate in zip(moves, together, strict=True):
            row.above[by] = estimate
            row.above_alone[by] = interval(float(move[0]), move[1:])
    return tuple(found)


@dataclass(frozen=True, slots=True, eq=False)
class _Line:
    """Of best-of-n, by n. by: the score it chooses by. costs: f64[N], ascending. scores: f64[1 + R, N], the
    mean and the resamples."""

    by: str
    costs: Floats
    scores: Floats

    def scores_at(self, cost: float) -> Floats:
        """[1 + R]"""
        return np.array([np.interp(cost, self.costs, row) for row in self.scores])


def _line(curve: Curve, score: str, judging: Judging) -> _Line | None:
    usable = [
        (point.cost, column)
        for point in curve.between or curve.points
        if point.cost is not None and (column := _column(point, score, judging)) is not None
    ]
    if len(usable) < 2:
        return None
    usable.sort(key=lambda pair: pair[0])
    costs, columns = zip(*usable, strict=True)
    return _Line(curve.proxy or curve.name, np.array(costs), np.stack(columns, 1))


def _mean_column(curve: Curve, index: int, score: str, judging: Judging) -> Floats | None:
    """Of a point; of several training seeds, the mean of theirs. [1 + R]"""
    if not curve.members:
        return _column(curve.points[index], score, judging)
    ordered = [sorted(member.points, key=lambda point: point.knob)[index] for member in curve.members]
    columns = [_column(point, score, judging) for point in ordered]
    known = [column for column in columns if column is not None]
    if len(known) < len(columns):
        return None
    weights = seed_weights(curve.name, len(known), judging)
    even = np.full((1, len(known)), 1 / len(known))
    found: Floats = (np.concatenate([even, weights]) * np.stack(known, 1)).sum(1)
    return found


def _column(point: CurvePoint, score: str, judging: Judging) -> Floats | None:
    """[1 + R]"""
    if point.samples is None or score not in point.samples.scores:
        return None
    numbers = point.samples.scores[score]
    return np.append(numbers.mean, numbers.resampled(judging.draws)) if numbers.counts.any() else None
