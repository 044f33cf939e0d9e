"""Intervals of held-out figures: 95 %, where rows of one prompt go together."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from trimtab.guidance.training.examples import prompt_of

Z = 1.959964
_RESAMPLES = 1000
_ANYTHING = 1e9


@dataclass(frozen=True, slots=True)
class Interval:
    """A figure with its 95 % interval."""

    figure: float
    low: float
    high: float

    def named(self, name: str) -> dict[str, float]:
        """As metrics of a manifest: `name`, `name_low`, `name_high`."""
        return {name: self.figure, f"{name}_low": self.low, f"{name}_high": self.high}


def number_prompts(items: Sequence[Any]) -> Tensor:
    """The prompt of each item as a number i64[N], counted from 0 as they come."""
    number: dict[tuple[int, ...], int] = {}
    return torch.tensor([number.setdefault(prompt_of(item), len(number)) for item in items])


def mean_by_prompt(numbers: Tensor, prompts: Tensor) -> tuple[float, float]:
    """The mean of numbers [N], and its standard error. prompts: i64[N].

    By hand: 1, 3 of one prompt and 2, 2 of another: 2, and √(0² + 0²)/4 = 0; of four prompts
    √(1 + 1)/4 = 0.3535534.
    """
    mean = numbers.double().mean()
    by_prompt = torch.zeros(int(prompts.max()) + 1, dtype=torch.float64)
    by_prompt.index_add_(0, prompts, numbers.double() - mean)
    return mean.item(), by_prompt.square().sum().sqrt().item() / len(numbers)


def of_mean(numbers: Tensor, prompts: Tensor) -> Interval:
    """The mean, and Student's t standard errors on both sides of it, of as many degrees as there are
    prompts but one; of a single prompt, all numbers are possible.

    By hand: 1, 3, 2, 2 of four prompts: 2 ± 3.182 · √(2/4)/√3 · ½ = 2 ± 0.6495.
    """
    mean, error = mean_by_prompt(numbers, prompts)
    num = len(prompts.unique())
    half = _student(num - 1) * error * math.sqrt(num / (num - 1)) if num > 1 else _ANYTHING
    return Interval(mean, mean - half, mean + half)


def _student(degrees: int) -> float:
    """The 97.5 % quantile, by Cornish and Fisher's series (1937)."""
    terms = [Z, (Z**3 + Z) / 4, (5 * Z**5 + 16 * Z**3 + 3 * Z) / 96]
    terms.append((3 * Z**7 + 19 * Z**5 + 17 * Z**3 - 15 * Z) / 384)
    return sum(term / degrees**power for power, term in enumerate(terms))


def of_share(hits: Tensor, prompts: Tensor) -> Interval:
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
    return Interval(share, max(0.0, (middle - half) / whole), min(1.0, (middle + half) / whole))


def of_correlation(x: Tensor, y: Tensor, prompts: Tensor) -> Interval:
    """Pearson's r of x and y [N] with a bootstrap over prompts; 0 where one of them does not vary."""
    x, y = x.double() - x.double().mean(), y.double() - y.double().mean()
    columns = torch.stack([torch.ones_like(x), x, y, x * x, y * y, x * y], 1)
    sums = torch.zeros(int(prompts.max()) + 1, 6, dtype=torch.float64).index_add_(0, prompts, columns)
    drawn = _resamples(len(sums)) @ sums
    return _percentiles(_correlation(sums.sum(0, keepdim=True))[0], _correlation(drawn))


def of_ordering(good: Tensor, bad: Tensor, good_prompts: Tensor, bad_prompts: Tensor) -> Interval:
    """How often one of good [N] lies above one of bad [M], a tie counting half, over all such pairs, with a
    bootstrap over prompts, which are numbered alike for both."""
    wins = (good[:, None] > bad).double() + 0.5 * (good[:, None] == bad)
    counts = _resamples(int(torch.cat([good_prompts, bad_prompts]).max()) + 1)
    of_good, of_bad = counts[:, good_prompts], counts[:, bad_prompts]
    num = of_good.sum(1) * of_bad.sum(1)
    found = ((of_good @ wins) * of_bad).sum(1)[num > 0] / num[num > 0]
    return _percentiles(wins.mean(), found)


def _resamples(num_prompts: int) -> Tensor:
    """How often each prompt is drawn, f64[resamples, num_prompts]; always the same."""
    generator = torch.Generator().manual_seed(0)
    drawn = torch.randint(num_prompts, (_RESAMPLES, num_prompts), generator=generator)
    ones = torch.ones(drawn.shape, dtype=torch.float64)
    return torch.zeros_like(ones).scatter_add_(1, drawn, ones)


def _correlation(sums: Tensor) -> Tensor:
    """Of sums of 1, x, y, x², y², xy [R, 6] -> [R]."""
    num, x, y, xx, yy, xy = sums.unbind(1)
    spread = (xx - x * x / num).clamp(min=0) * (yy - y * y / num).clamp(min=0)
    return ((xy - x * y / num) / spread.sqrt()).where(spread > 0, torch.zeros_like(xy))


def _percentiles(figure: Tensor, resampled: Tensor) -> Interval:
    low, high = resampled.quantile(torch.tensor([0.025, 0.975], dtype=torch.float64)).tolist()
    return Interval(figure.item(), low, high)
