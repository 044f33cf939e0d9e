"""Statistics of replies: means, shares, correlations, with 95 % intervals that count prompts, not replies.

A part in numpy bootstraps what may be compared resample by resample, as an evaluation does; a part in torch
estimates single figures of held-out rows, where there is a formula by that.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

Floats = NDArray[np.float64]
RESAMPLES = 1000
Z = 1.959964
_ANYTHING = 1e9


@dataclass(frozen=True, slots=True)
class Estimate:
    """A mean, or what is estimated in its place, with its 95 % interval."""

    mean: float
    low: float
    high: float

    def named(self, name: str) -> dict[str, float]:
        """As metrics of a manifest: `name`, `name_low`, `name_high`."""
        return {name: self.mean, f"{name}_low": self.low, f"{name}_high": self.high}


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


def with_nan(numbers: Sequence[float | None]) -> Floats:
    """[N], nan where there is no number."""
    return np.array([np.nan if number is None else number for number in numbers], dtype=np.float64)


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


def share_decided_later(first: Sequence[float], second: Sequence[float]) -> float:
    """The share of the variance of V that arises after a point of the reply: 1 − Var E[r | start] / Var r.

    V(s) = E[r | s] is a martingale along a reply, so its variance only grows and ends at Var r. Two replies
    that were continued independently from the same start share E[r | start] and nothing else, so the
    covariance of their rewards estimates its variance without a value part that would have to be right.

    first, second: the rewards of the two continuations, one pair per start.

    Raises:
        ValueError: fewer than two pairs, pairs that do not match, or rewards without any variance.
    """
    rewards = np.array([first, second], dtype=np.float64)  # [2, N]
    if rewards.shape[1] < 2 or rewards.var() == 0:
        raise ValueError("the share of a variance needs two pairs of rewards or more, not all of them equal")
    centred = rewards - rewards.mean()
    return float(1 - (centred[0] * centred[1]).mean() / rewards.var())


def mean_by_prompt(numbers: Tensor, prompts: Tensor) -> tuple[float, float]:
    """The mean of numbers [N], and its standard error. prompts: i64[N].

    By hand: 1, 3 of one prompt and 2, 2 of another: 2, and √(0² + 0²)/4 = 0; of four prompts
    √(1 + 1)/4 = 0.3535534.
    """
    mean = numbers.double().mean()
    by_prompt = torch.zeros(int(prompts.max()) + 1, dtype=torch.float64)
    by_prompt.index_add_(0, prompts, numbers.double() - mean)
    return mean.item(), by_prompt.square().sum().sqrt().item() / len(numbers)


def estimate_mean(numbers: Tensor, prompts: Tensor) -> Estimate:
    """The mean, and Student's t standard errors on both sides of it, of as many degrees as there are
    prompts but one; of a single prompt, all numbers are possible.

    By hand: 1, 3, 2, 2 of four prompts: 2 ± 3.182 · √(2/4)/√3 · ½ = 2 ± 0.6495.
    """
    mean, error = mean_by_prompt(numbers, prompts)
    num = len(prompts.unique())
    half = _student(num - 1) * error * math.sqrt(num / (num - 1)) if num > 1 else _ANYTHING
    return Estimate(mean, mean - half, mean + half)


def _student(degrees: int) -> float:
    """The 97.5 % quantile, by Cornish and Fisher's series (1937)."""
    terms = [Z, (Z**3 + Z) / 4, (5 * Z**5 + 16 * Z**3 + 3 * Z) / 96]
    terms.append((3 * Z**7 + 19 * Z**5 + 17 * Z**3 - 15 * Z) / 384)
    return sum(term / degrees**power for power, term in enumerate(terms))


def estimate_share(hits: Tensor, prompts: Tensor) -> Estimate:
    """A share with the interval of Wilson (1927), which is right for few rows and for all or none of them.

    hits: [N], 0, ½ for a tie, or 1. It counts for as many rows as its error between prompts says, of which
    there are as many as prompts, at least.

    By hand: 8 of 10, each of its own prompt: (0.8 + 1.92/10 ± 1.96 √(0.016 + 0.96/100)) / 1.384 =
    [0.4901625, 0.9433178]. 10 of 10: [0.7224672, 1].
    """
    share, error = mean_by_prompt(hits, prompts)
    num_prompts = len(prompts.unique())
    num = len(hits) if error == 0 else share * (1 - share) / error**2
    num = min(max(num, num_prompts), len(hits)) if error > 0 else num_prompts
    middle = share + Z**2 / (2 * num)
    half = Z * math.sqrt(share * (1 - share) / num + Z**2 / (4 * num**2))
    whole = 1 + Z**2 / num
    return Estimate(share, max(0.0, (middle - half) / whole), min(1.0, (middle + half) / whole))


def estimate_correlation(x: Tensor, y: Tensor, prompts: Tensor) -> Estimate:
    """Pearson's r of x and y [N] with a bootstrap over prompts; 0 where one of them does not vary."""
    x, y = x.double() - x.double().mean(), y.double() - y.double().mean()
    columns = torch.stack([torch.ones_like(x), x, y, x * x, y * y, x * y], 1)
    sums = torch.zeros(int(prompts.max()) + 1, 6, dtype=torch.float64).index_add_(0, prompts, columns)
    drawn = _prompt_counts(len(sums)) @ sums
    return interval(_correlation(sums.sum(0, keepdim=True)).item(), _correlation(drawn).numpy())


def estimate_ordering(good: Tensor, bad: Tensor, good_prompts: Tensor, bad_prompts: Tensor) -> Estimate:
    """How often one of good [N] lies above one of bad [M], a tie counting half, over all such pairs, with a
    bootstrap over prompts, which are numbered alike for both."""
    wins = (good[:, None] > bad).double() + 0.5 * (good[:, None] == bad)
    counts = _prompt_counts(int(torch.cat([good_prompts, bad_prompts]).max()) + 1)
    of_good, of_bad = counts[:, good_prompts], counts[:, bad_prompts]
    num = of_good.sum(1) * of_bad.sum(1)
    found = ((of_good @ wins) * of_bad).sum(1)[num > 0] / num[num > 0]
    return interval(wins.mean().item(), found.numpy())


def _prompt_counts(num_prompts: int) -> Tensor:
    """How often each prompt is drawn, f64[RESAMPLES, num_prompts]; always the same, as a head's manifest must
    be when it is trained again."""
    generator = torch.Generator().manual_seed(0)
    drawn = torch.randint(num_prompts, (RESAMPLES, num_prompts), generator=generator)
    ones = torch.ones(drawn.shape, dtype=torch.float64)
    return torch.zeros_like(ones).scatter_add_(1, drawn, ones)


def _correlation(sums: Tensor) -> Tensor:
    """Of sums of 1, x, y, x², y², xy [R, 6] -> [R]."""
    num, x, y, xx, yy, xy = sums.unbind(1)
    spread = (xx - x * x / num).clamp(min=0) * (yy - y * y / num).clamp(min=0)
    return ((xy - x * y / num) / spread.sqrt()).where(spread > 0, torch.zeros_like(xy))
