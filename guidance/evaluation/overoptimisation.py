"""Overoptimisation: where the gold score turns down while the proxy that is optimised still rises."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from trimtab.guidance.evaluation.curve import Curve, CurvePoint
from trimtab.guidance.statistics import Estimate, Floats, interval

FORMS: dict[str, Callable[[Floats], Floats]] = {
    "d(a - bd)": lambda d: -(d**2),
    "d(a - b log d)": lambda d: -d * np.log(d),
}
"""What b multiplies in the gain at d = √KL (Gao 2023): the first was found for best-of-n, the
second for RL."""


@dataclass(frozen=True, slots=True)
class TurningPoint:
    """The knob and √KL with the highest gold score. drop: from there to the curve's end, over the same
    resamples. proxy_gain: of the proxy over the same stretch; None where it was not scored.
    has_turned: the drop's interval lies above zero while the proxy does not fall."""

    knob: float
    root_kl: float
    drop: Estimate
    proxy_gain: Estimate | None
    has_turned: bool


@dataclass(frozen=True, slots=True)
class BendFit:
    """gain(d) = d(α − β…) of one of FORMS, least squares over the points, with bootstrap intervals.
    error: root mean square of the residuals. is_carried: the data tell β from zero."""

    form: str
    alpha: Estimate
    beta: Estimate
    error: float
    is_carried: bool


@dataclass(frozen=True, slots=True)
class Overoptimisation:
    """Of one curve. turn: None where the highest gold score is at the curve's end."""

    curve: str
    gold: str
    proxy: str | None
    turn: TurningPoint | None
    fits: tuple[BendFit, ...]


def find_overoptimisation(curve: Curve, gold: str, draws: NDArray[np.int64]) -> Overoptimisation | None:
    """None for a curve with fewer than three points of growing KL that carry the gold score."""
    points = [p for p in curve.points if p.samples is not None and p.knob >= 0 and gold in p.samples.scores]
    points = sorted((p for p in points if p.samples.scores[gold].counts.any()), key=lambda p: p.kl.mean)  # type: ignore[union-attr]
    if len(points) < 3:
        return None
    root_kl = np.sqrt([max(p.kl.mean, 0.0) for p in points])
    golds = _table(points, gold, draws)
    proxy = curve.proxy if curve.proxy in curve.score_names and curve.proxy != gold else None
    proxies = None if proxy is None else _table(points, proxy, draws)
    return Overoptimisation(
        curve.name, gold, proxy, _turn(points, root_kl, golds, proxies), _fits(root_kl, golds)
    )


def fit_bend(d: Floats, gain: Floats, form: str) -> tuple[Floats, Floats]:
    """α and β of each row of gains by least squares. d: [S], above 0. gain: [R, S]. Returns two [R].

    By hand: gains 1 and 0 at d = 1 and 2 are d(2 − d): α = 2, β = 1.
    """
    design = np.stack([d, FORMS[form](d)], 1)  # [S, 2]
    solved = np.linalg.lstsq(design, gain.T, rcond=None)[0]
    return solved[0], solved[1]


def _table(points: Sequence[CurvePoint], name: str, draws: NDArray[np.int64]) -> Floats:
    """f64[1 + R, S]: row 0 the means, the rest the resamples."""
    columns = []
    for point in points:
        assert point.samples is not None
        numbers = point.samples.scores[name]
        columns.append(np.append(numbers.mean, numbers.resampled(draws)))
    return np.stack(columns, 1)


def _turn(
    points: Sequence[CurvePoint], root_kl: Floats, golds: Floats, proxies: Floats | None
) -> TurningPoint | None:
    peak = int(golds[0].argmax())
    if peak == len(points) - 1:
        return None
    drops = golds[:, peak] - golds[:, -1]
    drop = interval(float(drops[0]), drops[1:])
    gain = None
    if proxies is not None:
        gains = proxies[:, -1] - proxies[:, peak]
        gain = interval(float(gains[0]), gains[1:])
    has_turned = drop.low > 0 and (gain is None or gain.mean >= 0)
    return TurningPoint(points[peak].knob, float(root_kl[peak]), drop, gain, has_turned)


def _fits(root_kl: Floats, golds: Floats) -> tuple[BendFit, ...]:
    """Over the gain from the point of least KL; none with fewer than three points beyond it."""
    beyond = root_kl > root_kl[0]
    if root_kl[0] > 1e-3 or beyond.sum() < 3:
        return ()
    d, gains = root_kl[beyond], (golds - golds[:, :1])[:, beyond]
    fits = []
    for form, bend in FORMS.items():
        alpha, beta = fit_bend(d, gains, form)
        residual = gains[0] - (alpha[0] * d + beta[0] * bend(d))
        slope = interval(float(beta[0]), beta[1:])
        error = float(np.sqrt(np.mean(residual**2)))
        carried = slope.low > 0 or slope.high < 0
        fits.append(BendFit(form, interval(float(alpha[0]), alpha[1:]), slope, error, carried))
    return tuple(fits)
