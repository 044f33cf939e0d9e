"""What a tilt is at positions of replies, with gradient, and no more of the vocabulary in memory than a few
rows of it."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from trimtab.guidance.objectives.tilt import Tilt

ROWS_AT_ONCE = 256


@dataclass(frozen=True, slots=True)
class TiltTerms:
    """At each of N positions, [N]: ρ = log π/π₀ of the token; KL(π‖π₀) and entropy of π, nats."""

    log_ratio: Tensor
    kl: Tensor
    entropy: Tensor


def tilt_terms(tilt: Tilt, h: Tensor, tokens: Tensor) -> TiltTerms:
    """h: [N, d]. tokens: i64[N].

    By hand: π₀ = (½, ½), A = (ln 3, 0): π = (¾, ¼), ρ of the first is ln 1.5 = 0.4054651,
    KL = ¾ ln 1.5 + ¼ ln ½ = 0.1308120, entropy = ¾ ln 4/3 + ¼ ln 4 = 0.5623351.
    """
    column, vocabulary = tilt.advantage.column(h.float()), tilt.advantage.vocabulary(tilt.lm_head)
    pieces = []
    for start in range(0, len(h), ROWS_AT_ONCE):
        rows = slice(start, start + ROWS_AT_ONCE)
        arguments = (tilt, h[rows], column[rows], vocabulary, tokens[rows])
        # Gone over again backwards: kept, the vocabulary's rows would be the most of all memory.
        pieces.append(
            checkpoint(_terms, *arguments, use_reentrant=False)
            if torch.is_grad_enabled()
            else _terms(*arguments)
        )
    return TiltTerms(*(torch.cat(column) for column in zip(*pieces, strict=True)))


def _terms(tilt: Tilt, h: Tensor, column: Tensor, vocabulary: Tensor, tokens: Tensor) -> tuple[Tensor, ...]:
    z = tilt.policy.logits(h)
    base = z.log_softmax(-1)
    log_tilt = (z + column @ vocabulary.T).log_softmax(-1)
    ratio, probability = log_tilt - base, log_tilt.exp()
    return (
        ratio.gather(1, tokens[:, None])[:, 0],
        (probability * ratio).sum(-1),
        -(probability * log_tilt).sum(-1),
    )
