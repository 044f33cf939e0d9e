"""Calibration: whether what is said with 80 % confidence is right 80 times in 100."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from trimtab.guidance.statistics import Floats


@dataclass(frozen=True, slots=True)
class Bin:
    """Pairs whose confidence lies in low … high: their mean confidence, and the share that was right."""

    low: float
    high: float
    count: int
    confidence: float
    accuracy: float


@dataclass(frozen=True, slots=True)
class Calibration:
    """error: expected calibration error, 0 … 0.5. bins: those that hold a pair."""

    error: float
    bins: tuple[Bin, ...]


def calibrate(margins: ArrayLike, *, num_bins: int = 10) -> Calibration:
    """margins: [N], score of the chosen reply minus that of the rejected; σ(|margin|) is the confidence that
    the reply with the higher score is the chosen one. Bins of equal width from ½ to 1; the error is
    Σ n_b/N |accuracy_b − confidence_b| (Guo 2017). A margin of zero is right half the time.

    By hand: margins (ln 3, ln 3, −ln 3): confidence ¾ each, right 2 of 3: the error is 1/12.
    """
    margin = np.asarray(margins, dtype=np.float64)
    confidence = 1 / (1 + np.exp(-np.abs(margin)))
    right = np.where(margin == 0, 0.5, margin > 0)
    edges = np.linspace(0.5, 1, num_bins + 1)
    place = np.clip(np.digitize(confidence, edges) - 1, 0, num_bins - 1)
    bins = tuple(
        _bin(edges[b], edges[b + 1], confidence[place == b], right[place == b])
        for b in range(num_bins)
        if (place == b).any()
    )
    error = sum(b.count * abs(b.accuracy - b.confidence) for b in bins) / len(margin)
    return Calibration(error, bins)


def _bin(low: float, high: float, confidence: Floats, right: Floats) -> Bin:
    return Bin(float(low), float(high), len(right), float(confidence.mean()), float(right.mean()))
