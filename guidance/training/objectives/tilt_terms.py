"""What a tilt is at positions of replies, with gradient, and no more of the vocabulary in memory than a few
rows of it."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from trimtab.guidance.losses.fused_log_ratio import log_normaliser
from trimtab.guidance.losses.vocabulary_tiles import WriteLogits, tile_rows
from trimtab.guidance.training.objectives.tilt import Tilt


class TiltTerms(NamedTuple):
    """At each of N positions, [N]: ρ = log π/π₀ of the token; KL(π‖π₀) and entropy of π, nats."""

    log_ratio: Tensor
    kl: Tensor
    entropy: Tensor


def tilt_terms(tilt: Tilt, h: Tensor, tokens: Tensor) -> TiltTerms:
    """h: [N, d]. tokens: i64[N].

    With t = z + A, A = column · Uᵀ, m = π U and Λ = log E_{π₀} e^A: ρ = A(y) − Λ, KL = column · m − Λ,
    H = log Σ e^t − E_π[t]; and for gradients g of the three, that of t(a) is
    g_ρ (1{a = y} − π) + g_KL π (A − E_π[A]) − g_H π (log π + H), of which π is computed again backwards.

    By hand: π₀ = (½, ½), A = (ln 3, 0): π = (¾, ¼), ρ of the first is ln 1.5 = 0.4054651,
    KL = ¾ ln 1.5 + ¼ ln ½ = 0.1308120, entropy = ¾ ln 4/3 + ¼ ln 4 = 0.5623351.
    """
    column, vocabulary = tilt.advantage.factors(h.float(), tilt.lm_head)
    terms = _Terms.apply(tilt.policy.write_logits, h, column, vocabulary, tokens)  # type: ignore[no-untyped-call]
    return TiltTerms(*terms)


class _Terms(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, write: WriteLogits, h: Tensor, column: Tensor, vocabulary: Tensor, tokens: Tensor
    ) -> tuple[Tensor, ...]:
        ctx.dtypes = column.dtype, vocabulary.dtype
        with torch.autocast(h.device.type, enabled=False):
            column, u = column.float(), vocabulary.float()
            mean = torch.empty_like(column)  # π U
            base, tilted, expected = h.new_empty(3, len(h), dtype=torch.float32)
            for rows in _rows(h, u):
                t = _logits(write, h[rows], u)
                base[rows] = log_normaliser(t)
                t.addmm_(column[rows], u.T)
                probability = t.softmax(-1)
                tilted[rows] = t.amax(-1) - probability.amax(-1).log()
                torch.mm(probability, u, out=mean[rows])
                expected[rows] = probability.mul_(t).sum(-1)
            gained = (column * mean).sum(-1)  # E_π[A]
            log_mean_exp, entropy = tilted - base, tilted - expected
            of_token = (column * u[tokens]).sum(-1)
        ctx.write = write
        ctx.save_for_backward(h, column, u, tokens, gained, expected)
        return of_token - log_mean_exp, (gained - log_mean_exp).clamp(min=0), entropy

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, of_ratio: Tensor, of_kl: Tensor, of_entropy: Tensor) -> tuple[Tensor | None, ...]:
        h, column, u, tokens, gained, expected = ctx.saved_tensors
        grad_column, grad_u = torch.empty_like(column), torch.zeros_like(u)
        # log π + H is t − E_π[t]: what does not depend on a is one number for a row.
        by_row = of_entropy * expected - of_ratio - of_kl * gained
        with torch.autocast(h.device.type, enabled=False):
            for rows in _rows(h, u):
                t = _logits(ctx.write, h[rows], u).addmm_(column[rows], u.T)
                grad = (of_kl[rows, None] * column[rows]) @ u.T
                grad.addcmul_(t, of_entropy[rows, None], value=-1).add_(by_row[rows, None])
                grad.mul_(torch.softmax(t, -1, out=t))
                torch.mm(grad, u, out=grad_column[rows])
                grad_u.addmm_(grad.T, column[rows])
            grad_column += of_ratio[:, None] * u[tokens]
            grad_u.index_put_((tokens,), of_ratio[:, None] * column, accumulate=True)
        return None, None, grad_column.to(ctx.dtypes[0]), grad_u.to(ctx.dtypes[1]), None


def _rows(h: Tensor, vocabulary: Tensor) -> list[slice]:
    size = tile_rows(len(vocabulary))
    return [slice(start, start + size) for start in range(0, len(h), size)]


def _logits(write: WriteLogits, h: Tensor, vocabulary: Tensor) -> Tensor:
    z = torch.empty(len(h), len(vocabulary), dtype=torch.float32, device=h.device)
    write(h, z)
    return z
