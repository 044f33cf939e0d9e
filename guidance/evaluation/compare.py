"""Curves at equal price: what each scores at the same KL, and by how much one lies above another."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np

from trimtab.guidance.evaluation.curve import Curve, CurvePoint, Judging, PointSamples
from trimtab.guidance.evaluation.seed_group import seed_weights
from trimtab.guidance.statistics import Estimate, Floats, interval, simultaneous, with_nan

_Of = Literal["baseline", "best_of_n", "system_prompt"]


@dataclass(frozen=True, slots=True)
class Aside:
    """What replies at a price are like beside their score, None where it was not measured.

    length: tokens. kl_per_token: nats. stopped: share that ended by itself. perplexity: under the policy.
    distinct_2: within prompts. num_sampled: replies sampled for each that is kept.
    """

    num_sampled: float = 1.0
    length: float | None = None
    kl_per_token: float | None = None
    stopped: float | None = None
    perplexity: float | None = None
    distinct_2: float | None = None


@dataclass(frozen=True, slots=True)
class AtKl:
    """One curve at one KL. knob: the setting that costs this. by_seed: the score of each training seed.

    above_baseline: its score minus the baseline's there, on the same resamples, with an interval that holds
    for all comparisons of the evaluation at once; None for the baseline itself, or where the baseline does
    not reach. above_baseline_alone: with an interval for this comparison by itself. above_best_of_n and its
    like: the same against best-of-n by this score.
    """

    curve: str
    score: str
    kl: float
    knob: float
    estimate: Estimate
    above_baseline: Estimate | None = None
    above_baseline_alone: Estimate | None = None
    above_best_of_n: Estimate | None = None
    above_best_of_n_alone: Estimate | None = None
    above_system_prompt: Estimate | None = None
    above_system_prompt_alone: Estimate | None = None
    aside: Aside = Aside()
    by_seed: tuple[float, ...] = ()


@dataclass(frozen=True, slots=True)
class Unreached:
    """A curve that does not reach a KL. most: what it does reach; None where it holds no replies to the
    prompts that are judged here, so that nothing can be compared."""

    curve: str
    score: str
    kl: float
    most: float | None


@dataclass(frozen=True, slots=True)
class EqualKl:
    """num_comparisons: of two curves at one price, over which the intervals of differences hold at once."""

    found: tuple[AtKl, ...] = ()
    unreached: tuple[Unreached, ...] = ()
    num_comparisons: int = 0


def at_equal_kl(
    curves: Sequence[Curve],
    scores: Sequence[str],
    kls: Sequence[float],
    judging: Judging,
    *,
    baseline: str | None = None,
) -> EqualKl:
    """Each curve at each KL that it reaches, between its points: linearly in √KL, in which the gain of a
    small tilt is linear. A curve of several training seeds is the mean of theirs there.

    Points with a negative knob are left out. Best-of-n stands at its bound, which its KL is not above.
    A system prompt is one point and has no strength: nothing is read between it and the plain policy, but all
    curves are read at its KL, too, in each resample at what it costs there.

    judging: whose prompts all curves hold. baseline: a curve's name.
    """
    found: list[AtKl] = []
    unreached: list[Unreached] = []
    differences = _Differences()
    compared: set[tuple[str, float, frozenset[str | None]]] = set()
    for score in scores:
        lines = {curve.name: _line(curve, score, judging) for curve in curves}
        best = next((c.name for c in curves if c.kind == "best_of_n" and c.proxy == score), None)
        prices = [_Price(kl, np.full(1 + len(judging.draws), kl**0.5)) for kl in kls]
        prices += [
            _Price(curve.points[0].kl.mean, line.members[0].root_kl[:, 0], curve.name)
            for curve in curves
            if curve.kind == "system_prompt" and (line := lines[curve.name]) is not None
        ]
        for curve in curves:
            line = lines[curve.name]
            for price in prices:
                if curve.kind == "system_prompt" and price.of != curve.name:
                    continue
                if line is None or not line.reaches(price):
                    unreached.append(Unreached(curve.name, score, price.kl, _most(curve, score)))
                    continue
                here = line.scores_at(price)
                others: dict[_Of, str | None] = {
                    "baseline": baseline,
                    "best_of_n": best,
                    "system_prompt": price.of,
                }
                for of, other in others.items():
                    base = lines.get(other) if other is not None and other != curve.name else None
                    if base is not None and base.reaches(price):
                        differences.moves.append((len(found), of, here - base.scores_at(price)))
                        compared.add((score, price.kl, frozenset((curve.name, other))))
                found.append(_at(curve, score, price, line))
    return EqualKl(tuple(differences.told(found)), tuple(unreached), len(compared))


@dataclass(frozen=True, slots=True, eq=False)
class _Price:
    """kl: nats per reply. roots: √KL in the mean and in each resample, f64[1 + R]. of: the curve whose own
    price it is."""

    kl: float
    roots: Floats
    of: str | None = None


class _Differences:
    """What is claimed: rows of the table, from what they differ, and by how much, with its resamples."""

    def __init__(self) -> None:
        self.moves: list[tuple[int, _Of, Floats]] = []

    def told(self, rows: Sequence[AtKl]) -> list[AtKl]:
        told = list(rows)
        if not self.moves:
            return told
        moves = np.stack([move for *_, move in self.moves])
        together = simultaneous(moves[:, 0], moves[:, 1:])
        for (row, of, move), estimate in zip(self.moves, together, strict=True):
            alone = interval(float(move[0]), move[1:])
            changes: dict[str, Any] = {f"above_{of}": estimate, f"above_{of}_alone": alone}
            told[row] = replace(told[row], **changes)
        return told


@dataclass(frozen=True, slots=True, eq=False)
class _Line:
    """Row 0 is the mean, the rest are the resamples. root_kl, score: f64[1 + R, S]. knobs: f64[S].
    asides: by the name of an Aside's field, f64[S] with nan where it was not measured."""

    knobs: Floats
    root_kl: Floats
    score: Floats
    asides: Mapping[str, Floats]

    def reaches(self, price: _Price) -> bool:
        return bool(self.root_kl[0].min() <= price.roots[0] <= self.root_kl[0].max())

    def scores_at(self, price: _Price) -> Floats:
        """[1 + R]"""
        rows = zip(price.roots, self.root_kl, self.score, strict=True)
        return np.array([_interpolate(at, x, y) for at, x, y in rows])

    def read_at(self, price: _Price, numbers: Floats) -> float:
        return _interpolate(price.roots[0], self.root_kl[0], numbers)


@dataclass(frozen=True, slots=True, eq=False)
class _Lines:
    """One line, or those of several training seeds with what each counts, f64[1 + R, S]."""

    members: tuple[_Line, ...]
    weights: Floats

    def reaches(self, price: _Price) -> bool:
        return all(line.reaches(price) for line in self.members)

    def by_member(self, price: _Price) -> Floats:
        """[1 + R, S]"""
        return np.stack([line.scores_at(price) for line in self.members], 1)

    def scores_at(self, price: _Price) -> Floats:
        """[1 + R]"""
        found: Floats = (self.weights * self.by_member(price)).sum(1)
        return found

    def knob_at(self, price: _Price) -> float:
        return float(np.mean([line.read_at(price, line.knobs) for line in self.members]))

    def aside_at(self, price: _Price, name: str) -> float | None:
        number = float(np.mean([line.read_at(price, line.asides[name]) for line in self.members]))
        return None if np.isnan(number) else number


def _at(curve: Curve, score: str, price: _Price, lines: _Lines) -> AtKl:
    here, knob = lines.scores_at(price), lines.knob_at(price)
    length = lines.aside_at(price, "length")
    aside = Aside(
        knob if curve.kind == "best_of_n" else 1.0,
        length,
        price.kl / length if length else None,
        *(lines.aside_at(price, name) for name in ("stopped", "perplexity", "distinct_2")),
    )
    by_seed = tuple(map(float, lines.by_member(price)[0])) if curve.members else ()
    estimate = interval(float(here[0]), here[1:])
    return AtKl(curve.name, score, price.kl, knob, estimate, aside=aside, by_seed=by_seed)


def _line(curve: Curve, score: str, judging: Judging) -> _Lines | None:
    members = [_member(member, score, judging) for member in curve.members or (curve,)]
    known = [line for line in members if line is not None]
    if len(known) < len(members):
        return None
    mean = np.full((1, len(known)), 1 / len(known))
    return _Lines(tuple(known), np.concatenate([mean, seed_weights(curve.name, len(known), judging)]))


def _member(curve: Curve, score: str, judging: Judging) -> _Line | None:
    scored = [(point, s) for point, s in _usable(curve) if score in s.scores and s.scores[score].counts.any()]
    if len(scored) < (1 if curve.kind == "system_prompt" else 2):
        return None
    columns = [_column(samples, score, judging) for _, samples in scored]
    kl, numbers = (np.stack(side, 1) for side in zip(*columns, strict=True))
    points = [point for point, _ in scored]
    asides = {
        "length": with_nan([point.length for point in points]),
        "stopped": with_nan([point.stopped for point in points]),
        "perplexity": with_nan([point.perplexity for point in points]),
        "distinct_2": with_nan([p.variety.within.distinct_2 if p.variety else None for p in points]),
    }
    return _Line(np.array([p.knob for p in points]), np.sqrt(kl.clip(min=0)), numbers, asides)


def _usable(curve: Curve) -> list[tuple[CurvePoint, PointSamples]]:
    points = curve.between or curve.points
    return [(point, point.samples) for point in points if point.knob >= 0 and point.samples is not None]


def _most(curve: Curve, score: str) -> float | None:
    """The KL that a curve reaches; of several seeds the one that reaches least."""
    most = []
    for member in curve.members or (curve,):
        kls = [s.kl.mean for _, s in _usable(member) if score in s.scores and s.scores[score].counts.any()]
        most.append(max(kls, default=None))
    known = [kl for kl in most if kl is not None]
    return min(known) if len(known) == len(most) else None


def _column(samples: PointSamples, score: str, judging: Judging) -> tuple[Floats, Floats]:
    kl, numbers = samples.kl, samples.scores[score]
    draws = judging.draws
    return np.append(kl.mean, kl.resampled(draws)), np.append(numbers.mean, numbers.resampled(draws))


def _interpolate(at: float, x: Floats, y: Floats) -> float:
    order = np.argsort(x)
    return float(np.interp(at, x[order], y[order]))
