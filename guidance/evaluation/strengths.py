"""Where on a curve to look: the strengths at which a tilt costs about so many nats per reply."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from trimtab.guidance.features.source import FeatureSource
from trimtab.guidance.heads.forms import Advantage
from trimtab.guidance.policy import Policy
from trimtab.guidance.text.encoding import EncodedReply

MeanKL = Callable[[float], float]
_POSITIONS_PER_CHUNK = 2048
_HALVINGS = 6


def strengths_for(mean_kl: MeanKL, kls: Sequence[float], limit: float = 1e3) -> tuple[float, ...]:
    """For each of `kls` the strength, at most `limit`, at which mean_kl is about that. Duplicates go.

    mean_kl: nats per reply at a strength; grows with it. Along plain replies it is where to look, not a
    result: the tilt's own replies go elsewhere.
    """
    return tuple(dict.fromkeys(_bisect(mean_kl, kl, limit) for kl in kls))


@dataclass(frozen=True, slots=True, eq=False)
class Probe:
    """Plain replies along which is looked what tilts cost. h: f32[N, d], at their drawn tokens."""

    policy: Policy
    h: Tensor
    num_replies: int

    @classmethod
    def along(cls, features: FeatureSource, plain: Sequence[EncodedReply]) -> Probe:
        h = torch.cat([h[: r.num_drawn] for h, r in zip(features.get(plain), plain, strict=True)])
        return cls(features.policy, h, len(plain))

    def head(self, advantages: Sequence[tuple[Advantage, float]]) -> MeanKL:
        """The mean of Σ_t KL(π_β‖π₀) by strength. advantages: (part, weight times scale) pairs, as a request
        would combine them."""
        lm_head = self.policy.lm_head.float()
        return self._mean_kl(
            lambda h: sum((w * part(h.float(), lm_head) for part, w in advantages), torch.zeros(()))
        )

    def constant(self, tilt: Tensor) -> MeanKL:
        """The same of one tilt for all states, f32[V]."""
        return self._mean_kl(lambda _: tilt)

    def _mean_kl(self, tilt_of: Callable[[Tensor], Tensor]) -> MeanKL:
        @torch.no_grad()
        def mean_kl(strength: float) -> float:
            total = 0.0
            for piece in self.h.to(self.policy.device).split(_POSITIONS_PER_CHUNK):
                logits = self.policy.logits(piece)
                total += _kl(logits, logits + strength * tilt_of(piece))
            return total / self.num_replies

        return mean_kl


def _kl(base: Tensor, tilted: Tensor) -> float:
    tilted = tilted.log_softmax(-1)
    return float((tilted.exp() * (tilted - base.log_softmax(-1))).sum())


def _bisect(mean_kl: MeanKL, kl: float, limit: float) -> float:
    low, high = 0.0, min(1.0, limit)
    while high < limit and mean_kl(high) < kl:
        low, high = high, min(2 * high, limit)
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        low, high = (middle, high) if mean_kl(middle) < kl else (low, middle)
    return round((low + high) / 2, 4)
