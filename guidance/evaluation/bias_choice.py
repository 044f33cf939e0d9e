"""Settings of the static bias, ranked by tuning prompts: the best is the constant that heads must beat."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from statistics import fmean


@dataclass(frozen=True, slots=True)
class BiasSetting:
    """discount, shrinkage, max_tokens: of fit_static_bias; None names every token that was seen."""

    discount: float
    shrinkage: float
    max_tokens: int | None


@dataclass(frozen=True, slots=True)
class BiasTrial:
    """num_tokens: that the bias names. first_kl: nats per reply at which it was tried first, as measured.
    slope: its gain over plain there ÷ √KL, in which the gain of a small tilt is linear. scores: of the best
    few at each KL that is compared at, None where it does not reach."""

    setting: BiasSetting
    num_tokens: int
    first_kl: float
    slope: float
    scores: tuple[float | None, ...] = ()
    is_chosen: bool = False

    @property
    def merit(self) -> tuple[int, float, float]:
        """What trials are ranked by: prices that are reached, the mean score at them, the slope."""
        known = [score for score in self.scores if score is not None]
        return len(known), fmean(known) if known else 0.0, self.slope


def all_settings(
    discounts: Sequence[float], shrinkages: Sequence[float], tokens: Sequence[int | str]
) -> Iterator[BiasSetting]:
    """Every combination, each once."""
    for discount, shrinkage, num in dict.fromkeys(itertools.product(discounts, shrinkages, tokens)):
        yield BiasSetting(discount, shrinkage, num if isinstance(num, int) else None)


def ranked(trials: Sequence[BiasTrial]) -> list[BiasTrial]:
    """The best first, which is marked as chosen.

    By hand: scores (3, 4) are better than (2, 4.5), and than (9, None), which reaches one price only.
    """
    first, *others = sorted(trials, key=lambda trial: trial.merit, reverse=True)
    return [replace(first, is_chosen=True), *others]
