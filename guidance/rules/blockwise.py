"""Blockwise best-of-K: draws K continuations of m tokens, goes on with the best by value, and repeats."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

from trimtab.guidance.errors import RuleError
from trimtab.guidance.rules.base import check_integer
from trimtab.guidance.rules.pool import PoolRule, Standing, spread


@dataclass(frozen=True, slots=True)
class Blockwise(PoolRule):
    """`argmax V` of K blocks of m tokens from forks of the reply so far, V the heads' weighted values and the
    strength's sign which way is up; again and again.

    Blockwise controlled decoding (S. Mudgal et al. 2023, arXiv 2310.17022). With `keep` above 1 it is a beam
    search over blocks, the breadth-first tree of thought (S. Yao et al. 2023, arXiv 2305.10601): the best so
    many go on, forked to K again, and the best of them is the reply.

    Cost: K tokens, and one more a block, for each token of the reply. With `keep` 1 a reply is within
    `log K − (K − 1)/K` nats a block of what draws the blocks (`kl_bound`; A. Beirami et al. 2024, arXiv
    2401.01879), else within `log K` (no reply is K times likelier for each block), which the summary's KL
    does not count.

    candidates: K. block: m. keep: how many go on. proposal: what draws a block.
    """

    candidates: int = 8
    keep: int = 1

    kind: ClassVar[str] = "blockwise"
    wide: ClassVar[str] = "candidates"

    def __post_init__(self) -> None:
        super(Blockwise, self).__post_init__()
        check_integer("keep", self.keep, 1, self.candidates)
        if self.keep == self.candidates:
            raise RuleError("keep", "must be below candidates, or none is ever dropped")

    def sift(self, pool: Sequence[Standing], uniform: float, figures: dict[str, float]) -> list[int]:
        best = _best(pool)[: self.keep]
        growing = [i for i in best if not pool[i].is_over] or best
        self._bound(pool, figures)
        counts = [int(i in best) for i in range(len(pool))]
        for i in range(len(pool) - len(best)):
            counts[growing[i % len(growing)]] += 1
        return spread(best, counts)

    def pick(
        self, pool: Sequence[Standing], num: int, uniform: float, figures: dict[str, float]
    ) -> dict[int, dict[str, float]]:
        self._bound(pool, figures)
        return {_best(pool)[0]: figures}

    def reply_kl(self, kl: float, figures: Mapping[str, float]) -> float:
        return kl + figures.get("kl_bound", 0.0)

    def _bound(self, pool: Sequence[Standing], figures: dict[str, float]) -> None:
        """Of one more choice, where there is one: sequences may all be the same that a sifting has left."""
        if len({each.score for each in pool}) > 1:
            num = len(pool)
            spared = (num - 1) / num if self.keep == 1 else 0.0
            figures["kl_bound"] = figures.get("kl_bound", 0.0) + math.log(num) - spared


def _best(pool: Sequence[Standing]) -> list[int]:
    """By score, the lowest place first on a tie."""
    return sorted(range(len(pool)), key=lambda i: -pool[i].score)
