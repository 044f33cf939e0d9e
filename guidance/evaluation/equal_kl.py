"""Curves at equal price: what each scores at the same KL, and by how much one lies above another."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from trimtab.guidance.evaluation.curve import Curve, PointSamples
from trimtab.guidance.evaluation.statistics import Estimate, Floats, interval


@dataclass(frozen=True, slots=True)
class AtKl:
    """One curve at one KL. above_baseline: its score minus the baseline's there, on the same resamples;
    None for the baseline itself, or where the baseline does not reach. knob: the setting that costs this."""

    curve: str
    score: str
    kl: float
    knob: float
    estimate: Estimate
    above_baseline: Estimate | None = None


def at_equal_kl(
    curves: Sequence[Curve],
    score: str,
    kls: Sequence[float],
    draws: NDArray[np.int64],
    *,
    baseline: str | None = None,
) -> list[AtKl]:
    """Each curve at each KL that it reaches, between its points: linearly in √KL, in which the gain of a
    small tilt is linear.

    Points with a negative knob are left out. A curve whose KLs are bounds, or that was measured elsewhere,
    is left out too: its KLs say nothing here.

    draws: i64[R, P]; all curves hold the same prompts. baseline: a curve's name.
    """
    lines = {curve.name: _line(curve, score, draws) for curve in curves if not curve.is_bound}
    found = []
    for name, line in lines.items():
        base = lines.get(baseline) if baseline is not None and baseline != name else None
        for kl in kls:
            if line is not None and line.reaches(kl):
                found.append(_at(name, score, kl, line, base if base and base.reaches(kl) else None))
    return found


@dataclass(frozen=True, slots=True, eq=False)
class _Line:
    """Row 0 is the mean, the rest are the resamples. root_kl, score: f64[1 + R, S]. knobs: f64[S]."""

    knobs: Floats
    root_kl: Floats
    score: Floats

    def reaches(self, kl: float) -> bool:
        return bool(self.root_kl[0].min() <= kl**0.5 <= self.root_kl[0].max())

    def scores_at(self, kl: float) -> Floats:
        """[1 + R]"""
        return np.array([_interpolate(kl**0.5, x, y) for x, y in zip(self.root_kl, self.score, strict=True)])


def _at(name: str, score: str, kl: float, line: _Line, base: _Line | None) -> AtKl:
    here = line.scores_at(kl)
    above = None if base is None else here - base.scores_at(kl)
    return AtKl(
        name,
        score,
        kl,
        _interpolate(kl**0.5, line.root_kl[0], line.knobs),
        interval(here[0], here[1:]),
        None if above is None else interval(above[0], above[1:]),
    )


def _line(curve: Curve, score: str, draws: NDArray[np.int64]) -> _Line | None:
    points = [(p.knob, p.samples) for p in curve.points if p.knob >= 0 and p.samples is not None]
    scored = [(knob, s) for knob, s in points if score in s.scores and s.scores[score].counts.any()]
    if len(scored) < 2:
        return None
    columns = [_column(samples, score, draws) for _, samples in scored]
    kl, numbers = (np.stack(side, 1) for side in zip(*columns, strict=True))
    return _Line(np.array([knob for knob, _ in scored]), np.sqrt(kl.clip(min=0)), numbers)


def _column(samples: PointSamples, score: str, draws: NDArray[np.int64]) -> tuple[Floats, Floats]:
    kl, numbers = samples.kl, samples.scores[score]
    return np.append(kl.mean, kl.resampled(draws)), np.append(numbers.mean, numbers.resampled(draws))


def _interpolate(at: float, x: Floats, y: Floats) -> float:
    order = np.argsort(x)
    return float(np.interp(at, x[order], y[order]))
