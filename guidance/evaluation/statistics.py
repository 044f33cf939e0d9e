"""Means over replies with intervals that respect that replies to one prompt go together."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True, slots=True)
class Estimate:
    """A mean with its 95 % interval."""

    mean: float
    low: float
    high: float


def estimate_by_prompt(
    prompts: Sequence[str], numbers: Sequence[float], *, resamples: int = 1000, seed: int = 0
) -> Estimate:
    """The mean of `numbers` with a percentile bootstrap over prompts (Efron 1979): prompts are drawn again
    with replacement, each with all its replies.

    Raises:
        ValueError: no numbers.
    """
    if not len(numbers):
        raise ValueError("an estimate needs at least one number")
    _, group = np.unique(np.asarray(prompts), return_inverse=True)
    totals = np.bincount(group, weights=np.asarray(numbers, dtype=np.float64))
    counts = np.bincount(group)
    draws = np.random.default_rng(seed).integers(len(counts), size=(resamples, len(counts)))
    means = totals[draws].sum(1) / counts[draws].sum(1)
    low, high = np.quantile(means, (0.025, 0.975))
    return Estimate(float(totals.sum() / counts.sum()), float(low), float(high))


def distinct(token_ids: Sequence[Sequence[int]], n: int) -> float:
    """Different n-grams of tokens ÷ all n-grams, over all replies together (Li 2016). 0 where there is none.

    By hand: (1, 2, 1) and (1, 2) hold the bigrams 12, 21, 12: distinct-2 is 2/3.
    """
    grams = [tuple(ids[i : i + n]) for ids in token_ids for i in range(len(ids) - n + 1)]
    return len(set(grams)) / len(grams) if grams else 0.0
