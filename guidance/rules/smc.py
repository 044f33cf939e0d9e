"""SMC: particles of a reply, weighed by what their values have grown by and resampled where few carry all."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

from trimtab.guidance.rules.base import check_number
from trimtab.guidance.rules.pool import PoolRule, Standing, spread


@dataclass(frozen=True, slots=True)
class Smc(PoolRule):
    """Sequential Monte Carlo for `π₀(y) exp(β(V(y) − V(prompt))) / Z`, V the heads' weighted values and β the
    strength. After each block a particle's weight is multiplied by `exp(β ΔV)`, and by `π₀/π_β` of its tokens
    where the tilt drew them; where the effective sample size `(Σw)²/Σw²` falls below a share of their number,
    all are resampled, systematically, and weigh alike again. One particle is the reply, drawn by weight; or,
    where as many replies are asked for as there are particles, all are, each with its `weight` among them.

    A. Lew et al. 2023 (arXiv 2306.03081); S. Zhao et al. 2024, twisted SMC (arXiv 2404.17546), whose twists
    are values; arXiv 2604.16453.

    Cost: as many tokens as particles, and one more of each a block, for each token of the reply. The summary
    has `log_normaliser`, an estimate of log Z that is unbiased before the logarithm, `ess` (the least there
    was, of the particles' number), `resamplings`, and `kl_bound`, `β(V(y) − V(prompt)) − log Z` as estimated:
    over many replies its mean is not below their KL from the policy. (The estimate being unbiased, all that
    was drawn, weighed by `Z exp(−β(V(y) − V(prompt)))`, is a law under which y is the policy's; from that
    law the KL is the mean of `kl_bound`, and the KL of y alone is no greater.)

    resample: the share. proposal: what draws the particles; `tilt` needs temperature 1 and no truncation, or
    its correction would be of another distribution.
    """

    particles: int = 8
    resample: float = 0.5

    kind: ClassVar[str] = "smc"
    wide: ClassVar[str] = "particles"

    def __post_init__(self) -> None:
        super(Smc, self).__post_init__()
        check_number("resample", self.resample, 0, 1)

    def sift(self, pool: Sequence[Standing], uniform: float, figures: dict[str, float]) -> list[int]:
        self._weigh(pool, figures)
        places = list(range(len(pool)))
        ess = effective_size([each.log_weight for each in pool])
        if ess >= self.resample * len(pool):
            return places
        figures["resamplings"] += 1
        self._settle(pool, figures)
        counts = systematic(normalised([each.log_weight for each in pool]), uniform)
        for each in pool:
            each.log_weight = 0.0
        return spread(places, counts)

    @property
    def nums_of_replies(self) -> tuple[int, ...]:
        return 1, self.particles

    def pick(
        self, pool: Sequence[Standing], num: int, uniform: float, figures: dict[str, float]
    ) -> dict[int, dict[str, float]]:
        self._weigh(pool, figures)
        self._settle(pool, figures)
        weights = normalised([each.log_weight for each in pool])
        bounds = [{**figures, "kl_bound": each.growth - figures["log_normaliser"]} for each in pool]
        if num == 1:
            picked = _drawn(weights, uniform)
            return {picked: bounds[picked]}
        return {i: {**bounds[i], "weight": weight} for i, weight in enumerate(weights)}

    def reply_kl(self, kl: float, figures: Mapping[str, float]) -> float:
        return figures["kl_bound"]

    def _weigh(self, pool: Sequence[Standing], figures: dict[str, float]) -> None:
        for each in pool:
            each.log_weight += each.gain + each.log_ratio
        ess = effective_size([each.log_weight for each in pool])
        figures["ess"] = min(figures.get("ess", ess), ess)
        figures.setdefault("log_normaliser", 0.0)
        figures.setdefault("resamplings", 0.0)

    def _settle(self, pool: Sequence[Standing], figures: dict[str, float]) -> None:
        """What the weights come to on average, before they are made equal."""
        top = max(each.log_weight for each in pool)
        mean = sum(math.exp(each.log_weight - top) for each in pool) / len(pool)
        figures["log_normaliser"] += top + math.log(mean)


def _drawn(weights: Sequence[float], uniform: float) -> int:
    below = 0.0
    for i, weight in enumerate(weights):
        below += weight
        if uniform < below:
            return i
    return max(range(len(weights)), key=weights.__getitem__)  # the weights fall short of 1 by their rounding


def normalised(log_weights: Sequence[float]) -> list[float]:
    """Weights that sum to 1."""
    top = max(log_weights)
    weights = [math.exp(each - top) for each in log_weights]
    total = sum(weights)
    return [weight / total for weight in weights]


def effective_size(log_weights: Sequence[float]) -> float:
    """`(Σw)²/Σw²`: 1 where one weighs all, their number where all weigh alike."""
    return 1 / sum(weight * weight for weight in normalised(log_weights))


def systematic(weights: Sequence[float], uniform: float) -> list[int]:
    """How often each of N is drawn by N draws at (i + u)/N: ⌊Nw⌋ or ⌈Nw⌉ times, Nw on average.

    weights: sum to 1. uniform: u, in (0, 1).
    """
    num, below, drawn, counts = len(weights), 0.0, 0, []
    for weight in weights:
        below += weight
        until = min(max(math.ceil(num * below - uniform), drawn), num)
        counts.append(until - drawn)
        drawn = until
    counts[max(range(num), key=weights.__getitem__)] += num - drawn  # the sum's rounding
    return counts
