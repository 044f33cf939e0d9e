"""Log-ratio, fused: takes losses.common.log_ratio of an advantage that is a product of thin factors, in one
pass over the vocabulary and one buffer of it."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from trimtab.guidance.losses.vocabulary_tiles import Workspace, WriteLogits, store, tiles

CACHED_BYTES = 2**23


class FusedTerms(NamedTuple):
    """At each of N positions, f32[N]: ρ of the token; and without gradient log π₀ of it, and KL(π₁‖π₀)."""

    log_ratio: Tensor
    base: Tensor
    kl: Tensor


def fused_log_ratio(
    write: WriteLogits,
    h: Tensor,
    column: Tensor,
    vocabulary: Tensor,
    tokens: Tensor,
    workspace: Workspace | None = None,
) -> FusedTerms:
    """ρ = log π₁(y) − log π₀(y) with π₁ ∝ π₀ e^A, A = column · vocabularyᵀ, and what comes with it for free.

    The same as log_ratio(z, column @ vocabulary.T, tokens). Autograd would keep five tensors [N, V] for it
    and pass over them a dozen times. Here ρ = A(y) − log E_{π₀} e^A, the mean from the log-normalisers of
    both; π₁ alone is kept (of as many rows as KEPT_BYTES hold), from which all else are thin products:
    m = π₁ · vocabulary [N, r] gives ∂ρ/∂column = vocabulary[y] − m and KL = column · m − log E_{π₀} e^A; and
    Σ g ∂ρ/∂vocabulary = Σ g (e_y − π₁) columnᵀ.

    h: [N, d]. column: f32[N, r]. vocabulary: f32[V, r]. tokens: i64[N], y. Under autocast the products with
    the vocabulary are taken, and π₁ kept, in its dtype.

    By hand: π₀ = (½, ½), column = (ln 3), vocabulary = ((1), (0)), y = 0: π₁ = (¾, ¼),
    ρ = ln 1.5 = 0.4054651, KL = ¾ ln 3 − ln 2 = 0.1308120, ∂ρ/∂column = 1 − ¾ = ¼,
    ∂ρ/∂vocabulary = ln 3 · ((1 − ¾), (−¼)) = ((0.2746531), (−0.2746531)).
    """
    space = workspace or Workspace()
    is_kept = torch.is_grad_enabled() and vocabulary.requires_grad
    terms = _FusedLogRatio.apply(write, h, column, vocabulary, tokens, space, is_kept)  # type: ignore[no-untyped-call]
    return FusedTerms(*terms)


class _FusedLogRatio(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        write: WriteLogits,
        h: Tensor,
        column: Tensor,
        vocabulary: Tensor,
        tokens: Tensor,
        workspace: Workspace,
        is_kept: bool,
    ) -> tuple[Tensor, ...]:
        kind = h.device.type
        dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else torch.float32
        num_rows = len(h) if is_kept else 0
        with torch.autocast(kind, enabled=False):
            column, u = column.to(dtype), vocabulary.to(dtype)
            kept = workspace.take(num_rows, len(u), h.device, dtype)  # π₁ [n, V]
            mean = torch.empty_like(column)  # π₁ · vocabulary
            drawn, normaliser, tilted = h.new_empty(3, len(h), dtype=torch.float32)
            for rows, tile in tiles(kept, len(h)):
                write(h[rows], tile)
                drawn[rows] = tile.gather(1, tokens[rows, None])[:, 0]
                normaliser[rows] = log_normaliser(tile)
                tilted[rows] = _tilt(tile, column[rows], u)
                torch.mm(store(kept, rows, tile), u, out=mean[rows])
            log_mean_exp = tilted - normaliser
            of_token = (column.float() * u[tokens].float()).sum(-1)
            kl = ((column.float() * mean.float()).sum(-1) - log_mean_exp).clamp(min=0)
        ctx.write, ctx.workspace = write, workspace
        ctx.save_for_backward(h, kept, mean, column, u, tokens)
        base = drawn - normaliser
        ctx.mark_non_differentiable(base, kl)
        return of_token - log_mean_exp, base, kl

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor, *_: Tensor) -> tuple[Tensor | None, ...]:
        h, kept, mean, column, u, tokens = ctx.saved_tensors
        grad_column = grad_vocabulary = None
        if ctx.needs_input_grad[2]:
            grad_column = grad[:, None] * (u[tokens].float() - mean.float())
        if ctx.needs_input_grad[3]:
            weighted = -grad[:, None] * column.float()
            with torch.autocast(h.device.type, enabled=False):
                thin = weighted.to(u.dtype)
                grad_vocabulary = (kept.T @ thin[: len(kept)]).float()
                ctx.workspace.give_back(kept)
                for rows, tile in tiles(kept, len(h), start=len(kept)):
                    ctx.write(h[rows], tile)
                    _tilt(tile, column[rows], u)
                    grad_vocabulary += (tile.to(u.dtype).T @ thin[rows]).float()
            # Not index_add_, which takes sixteen times as long.
            grad_vocabulary.index_put_((tokens,), -weighted, accumulate=True)
        return None, None, grad_column, grad_vocabulary, None, None, None


def _tilt(z: Tensor, column: Tensor, vocabulary: Tensor) -> Tensor:
    """z + column · vocabularyᵀ becomes its own softmax; returns log Σ e^ of it, [n]."""
    if column.dtype == z.dtype:
        z.addmm_(column, vocabulary.T)
    else:
        z += column @ vocabulary.T
    top = z.amax(-1)
    torch.softmax(z, -1, out=z)
    return top - z.amax(-1).log()  # the likeliest one's probability is at least 1/V


def log_normaliser(z: Tensor) -> Tensor:
    """log Σ e^z, [n], of [n, V], which is left as it is: torch.logsumexp takes four times as long."""
    scratch = torch.empty_like(z[: max(1, CACHED_BYTES // (4 * z.shape[1]))])
    pieces = []
    for rows in z.split(len(scratch)):
        probability = torch.softmax(rows, -1, out=scratch[: len(rows)])
        pieces.append(rows.amax(-1) - probability.amax(-1).log())
    return torch.cat(pieces)
