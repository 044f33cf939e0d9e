"""Heads of several training seeds as one curve: their mean, with intervals over seeds and prompts."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from statistics import fmean

import numpy as np

from trimtab.guidance.evaluation.curve import Curve, CurvePoint, Judging, PointSamples, ScoreSummary
from trimtab.guidance.evaluation.variety import Repetition, Variety
from trimtab.guidance.statistics import Estimate, Floats, PerPrompt, interval, resample_seeds


def group_seeds(name: str, members: Sequence[Curve], judging: Judging) -> Curve:
    """The mean of curves that differ by the seed of their training alone, point by point.

    Their points go together by their order from the plain policy on: at about the same price, though not by
    just the same knob. A point's numbers are means over seeds.
    """
    weights = seed_weights(name, len(members), judging)
    ordered = [sorted(member.points, key=lambda point: point.knob) for member in members]
    points = tuple(_mean_point(column, weights, judging) for column in zip(*ordered, strict=False))
    first, proxies = members[0], {member.proxy for member in members}
    proxy = first.proxy if len(proxies) == 1 else None
    return replace(first, name=name, points=points, proxy=proxy, members=tuple(members))


def seed_weights(group: str, num_seeds: int, judging: Judging) -> Floats:
    """What each seed counts in each resample of the judging, f64[R, S]. The name of the group is part of what
    draws: the first seeds of two groups have no more in common than any others."""
    seed = (judging.seed, zlib.crc32(group.encode()))
    return resample_seeds(num_seeds, resamples=len(judging.draws), seed=seed)


def _mean_point(points: Sequence[CurvePoint], weights: Floats, judging: Judging) -> CurvePoint:
    samples = [point.samples for point in points]
    known = [one for one in samples if one is not None]
    assert len(known) == len(points), "a head's points are sampled here"

    def mean(read: Callable[[PointSamples], PerPrompt | None]) -> Estimate | None:
        return _estimate([read(one) for one in known], weights, judging)

    names = points[0].scores
    kl = mean(lambda one: one.kl)
    assert kl is not None
    return CurvePoint(
        knob=fmean(point.knob for point in points),
        kl=kl,
        scores={
            name: ScoreSummary(
                mean(lambda one, name=name: one.scores.get(name)),  # type: ignore[misc]
                fmean(point.scores[name].unscored for point in points),
                mean(lambda one, name=name: one.wins.get(name)),  # type: ignore[misc]
            )
            for name in names
        },
        num_replies=sum(point.num_replies for point in points),
        length=_mean(point.length for point in points),
        words=_mean(point.words for point in points),
        stopped=_mean(point.stopped for point in points),
        flip_rate=_mean(point.flip_rate for point in points),
        perplexity=_mean(point.perplexity for point in points),
        entropy=_mean(point.entropy for point in points),
        cost=_mean(point.cost for point in points),
        variety=_mean_variety([point.variety for point in points]),
        samples=PointSamples(
            _pooled([one.kl for one in known]),
            {name: _pooled([one.scores[name] for one in known]) for name in names},
        ),
    )


def _estimate(parts: Sequence[PerPrompt | None], weights: Floats, judging: Judging) -> Estimate | None:
    known = [part for part in parts if part is not None and part.counts.any()]
    if len(known) < len(parts):
        return None
    resampled = np.stack([part.resampled(judging.draws) for part in known], 1)  # [R, S]
    return interval(fmean(part.mean for part in known), (weights * resampled).sum(1))


def _pooled(parts: Sequence[PerPrompt]) -> PerPrompt:
    return PerPrompt(sum(part.totals for part in parts), sum(part.counts for part in parts))  # type: ignore[arg-type]


def _mean(numbers: Iterable[float | None]) -> float | None:
    given = list(numbers)
    known = [number for number in given if number is not None]
    return fmean(known) if known and len(known) == len(given) else None


def _mean_variety(varieties: Sequence[Variety | None]) -> Variety | None:
    known = [variety for variety in varieties if variety is not None]
    if len(known) < len(varieties):
        return None
    return Variety(_mean_repetition([v.within for v in known]), _mean_repetition([v.across for v in known]))


def _mean_repetition(repetitions: Sequence[Repetition]) -> Repetition:
    return Repetition(
        _mean(one.distinct_1 for one in repetitions),
        _mean(one.distinct_2 for one in repetitions),
        _mean(one.self_bleu for one in repetitions),
    )
