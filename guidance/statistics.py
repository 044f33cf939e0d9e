"""Means over replies with intervals that respect that replies to one prompt go together."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

Floats = NDArray[np.float64]
RESAMPLES = 1000


@dataclass(frozen=True, slots=True)
class Estimate:
    """A mean with its 95 % interval."""

    mean: float
    low: float
    high: float


@dataclass(frozen=True, slots=True, eq=False)
class PerPrompt:
    """A number per reply, summed by prompt: what a bootstrap over prompts needs. totals, counts: [P]."""

    totals: Floats
    counts: Floats

    @classmethod
    def of(cls, prompts: ArrayLike, numbers: ArrayLike, num_prompts: int) -> PerPrompt:
        """prompts: i[N], below num_prompts. numbers: [N]; nan counts for nothing."""
        group, values = np.asarray(prompts, dtype=np.int64), np.asarray(numbers, dtype=np.float64)
        is_number = ~np.isnan(values)
        group, values = group[is_number], values[is_number]
        totals = np.bincount(group, weights=values, minlength=num_prompts)
        return cls(totals.astype(np.float64), np.bincount(group, minlength=num_prompts).astype(np.float64))

    @property
    def mean(self) -> float:
        """Over all replies; nan where there is none."""
        count = self.counts.sum()
        return float(self.totals.sum() / count) if count else float("nan")

    def resampled(self, draws: NDArray[np.int64]) -> Floats:
        """The mean in each resample. draws: i64[R, P] of resample_prompts. Returns [R]."""
        counts = self.counts[draws].sum(1)
        return np.divide(self.totals[draws].sum(1), counts, out=np.full(len(draws), np.nan), where=counts > 0)

    def estimate(self, draws: NDArray[np.int64]) -> Estimate | None:
        """None where no prompt has a number."""
        return interval(self.mean, self.resampled(draws)) if self.counts.any() else None


def resample_prompts(num_prompts: int, *, resamples: int = RESAMPLES, seed: int = 0) -> NDArray[np.int64]:
    """Prompts drawn again with replacement, i64[resamples, num_prompts]: a percentile bootstrap (Efron 1979).
    Everything that is estimated from the same draws may be compared resample by resample."""
    return np.random.default_rng(seed).integers(num_prompts, size=(resamples, num_prompts))


def resample_seeds(num_seeds: int, *, resamples: int = RESAMPLES, seed: int | Sequence[int] = 0) -> Floats:
    """What each training seed counts in each resample, f64[resamples, num_seeds]; rows sum to 1.

    Seeds are drawn again with replacement, and what that moves their mean by is stretched by √(S/(S−1)): a
    mean of S draws from S numbers has only (S−1)/S of the variance that the mean of S new seeds would have,
    two thirds of it with three. Together with resample_prompts: a bootstrap over seeds and prompts.

    By hand, two seeds: drawn (2, 0), (1, 1) or (0, 2) times, they count ½ ± √2/2, or ½ each. Of the numbers 0
    and 1 the mean then has variance ½ · (√2/2)² = ¼, which is s²/S = ½/2.
    """
    if num_seeds == 1:
        return np.ones((resamples, 1))
    draws = np.random.default_rng(seed).multinomial(num_seeds, [1 / num_seeds] * num_seeds, resamples)
    return 1 / num_seeds + (draws - 1) / num_seeds * np.sqrt(num_seeds / (num_seeds - 1))


def simultaneous(means: Floats, resampled: Floats) -> list[Estimate]:
    """Intervals that hold all of several numbers at once in 95 % of cases, by the greatest t over them in
    each resample: the more numbers, the wider, less so where they go together (Romano & Wolf 2005).

    means: [J]. resampled: [J, R] from the same resamples; nan among them is left out.

    By hand: one number that the resamples move by −2, −1, 0, 1 and 2 has a spread of √2, and |t| is 2/√2 at
    its 95 % quantile: the interval is the mean ± 2.
    """
    away = resampled - np.asarray(means)[:, None]
    known = ~np.isnan(away)
    spread = np.sqrt(np.where(known, away**2, 0).sum(1) / np.maximum(known.sum(1), 1))
    moves = spread > 0
    t = np.abs(np.where(known, away, 0)[moves]) / spread[moves, None]  # [J, R]
    times = np.quantile(t.max(0), 0.95) if moves.any() else 0.0
    return [
        Estimate(float(m), float(m - times * s), float(m + times * s))
        for m, s in zip(means, spread, strict=True)
    ]


def interval(mean: float, resampled: Floats) -> Estimate:
    """The 95 % percentile interval of what the resamples gave; nan among them is left out."""
    if np.isnan(resampled).all():
        return Estimate(mean, mean, mean)
    low, high = np.nanquantile(resampled, (0.025, 0.975))
    return Estimate(mean, float(low), float(high))


def estimate_by_prompt(
    prompts: ArrayLike, numbers: Sequence[float] | Floats, *, resamples: int = RESAMPLES, seed: int = 0
) -> Estimate:
    """The mean of `numbers` with a bootstrap over prompts: each is drawn with all its replies.

    prompts: one label per number, of any kind that sorts.

    Raises:
        ValueError: no numbers.
    """
    if not len(numbers):
        raise ValueError("an estimate needs at least one number")
    _, group = np.unique(np.asarray(prompts), return_inverse=True)
    per_prompt = PerPrompt.of(group, numbers, int(group.max()) + 1)
    found = per_prompt.estimate(resample_prompts(len(per_prompt.counts), resamples=resamples, seed=seed))
    if found is None:
        raise ValueError("an estimate needs at least one number that is not nan")
    return found
