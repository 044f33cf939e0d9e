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
