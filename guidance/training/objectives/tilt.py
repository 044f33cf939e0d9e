"""Tilt of an advantage at the positions of a batch, with gradient: the base's logits come from h again, and
no more of the vocabulary is in memory than a few rows of it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from trimtab.guidance.heads.forms import Advantage, TiedAdvantage
from trimtab.guidance.losses.fused_log_ratio import FusedTerms, fused_log_ratio, log_normaliser
from trimtab.guidance.losses.vocabulary_tiles import Workspace, WriteLogits, store, tile_rows, tiles
from trimtab.guidance.policy import Policy
from trimtab.guidance.text.encoding import EncodedReply
from trimtab.guidance.training.objectives.shortlist import shortlist_log_ratio

REMEMBERED_BYTES = 2**28
MEASURED_POSITIONS = 256


class Tilt(nn.Module):
    """π₁ ∝ π₀ e^A of a head's advantage. Its parameters are the advantage's."""

    def __init__(self, advantage: Advantage, policy: Policy) -> None:
        super().__init__()
        self.advantage = advantage
        self.policy = policy
        self.lm_head = policy.lm_head.float()
        self._workspace = Workspace()
        self._watched = self.lm_head[:0]

    def log_ratio(self, h: Tensor, tokens: Tensor) -> FusedTerms:
        """ρ of the tokens, log π₀ of them, and the KL, [N] each. h: [N, d]; tokens: i64[N]."""
        column, vocabulary = self.advantage.factors(h.float(), self.lm_head)
        return fused_log_ratio(self.policy.write_logits, h, column, vocabulary, tokens, self._workspace)

    def log_ratios(
        self,
        h: Tensor,
        tokens: Tensor,
        listed: Tensor | None = None,
        log_weight: Tensor | None = None,
        base: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """ρ of the tokens and log π₀ of them, [N] each: of the vocabulary, or of a Shortlist in its place."""
        if listed is None or log_weight is None or base is None:
            return self.log_ratio(h, tokens)[:2]
        column, vocabulary = self.advantage.factors(h.float(), self.lm_head)
        return shortlist_log_ratio(column, vocabulary, tokens, listed, log_weight), base

    def drawn(self, h: Tensor, tokens: Tensor) -> Tensor:
        """A(s, a) of the tokens, [N]. h: [N, d]; tokens: i64[N]."""
        rows = nn.functional.embedding(tokens, self.advantage.vocabulary(self.lm_head))  # [N, r]
        return (rows * self.advantage.column(h.float())).sum(-1)

    @property
    def is_tied(self) -> bool:
        return isinstance(self.advantage, TiedAdvantage)

    def centred(self, h: Tensor, tokens: Tensor, mean: Tensor | None = None) -> Tensor:
        """Ā(s, a) = A(s, a) − E_{π₀}[A(s, ·)] of the tokens a, which may be several for each state.

        h: [N, d]. tokens: i64[N] or i64[N, K]. mean: E_{π₀}[W], [N, d], where a tied advantage's is known.
        Returns [N] or [N, K].

        A is a product of a column [N, r] with a vocabulary U [V, r]: only the rows of U for the tokens and
        their mean under π₀ are needed, and no advantage of the whole vocabulary.
        """
        several = tokens if tokens.dim() == 2 else tokens[:, None]
        column, vocabulary = self.advantage.factors(h.float(), self.lm_head)
        if mean is None:
            centre = base_mean(self.policy.write_logits, h, vocabulary, self._workspace)
        else:
            assert isinstance(self.advantage, TiedAdvantage)
            centre = mean @ self.advantage.up
        rows = nn.functional.embedding(several, vocabulary) - centre[:, None]  # [N, K, r]
        scores = (rows @ column[:, :, None])[:, :, 0]
        return scores if tokens.dim() == 2 else scores[:, 0]

    def watch(self, h: Tensor) -> None:
        """No more than MEASURED_POSITIONS of h [N, d], evenly, are what `measure` is of from now on, where
        they are trained on."""
        if torch.is_grad_enabled():
            self._watched = h[:: -(-len(h) // MEASURED_POSITIONS)]

    @torch.no_grad()
    def measure(self) -> dict[str, Tensor]:
        """Per token, at the positions watched: the entropy of the tilt, its KL to the base (nats), and how
        often their first tokens differ. It goes over the vocabulary several times: not for every step."""
        h = self._watched
        logits = self.policy.logits(h)
        base = logits.log_softmax(-1)
        column, vocabulary = self.advantage.factors(h.float(), self.lm_head)
        tilt = (logits + column @ vocabulary.T).log_softmax(-1)
        probability = tilt.exp()
        return {
            "entropy": -(probability * tilt).sum(-1).mean(),
            "kl": (probability * (tilt - base)).sum(-1).mean(),
            "flip_rate": (tilt.argmax(-1) != base.argmax(-1)).float().mean(),
        }


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


class BaseMeans:
    """E_{π₀}[W] at positions of replies, [n, d], which training does not change: computed once, of as many
    replies as max_bytes hold. A tied advantage is centred by it without its vocabulary."""

    def __init__(self, policy: Policy, max_bytes: int = REMEMBERED_BYTES) -> None:
        self.policy, self._free = policy, max_bytes
        self._means: dict[EncodedReply, Tensor] = {}

    def compute(self, replies: Iterable[tuple[EncodedReply, Tensor]]) -> None:
        """Of h [n, d] of each reply. The same replies in the same order give the same bits."""
        lm_head = self.policy.lm_head.float()
        for reply, h in replies:
            if reply in self._means:
                continue
            size = 4 * h.numel()
            if size > self._free:
                return
            mean = base_mean(self.policy.write_logits, h.to(self.policy.device), lm_head)
            self._means[reply] = mean.cpu()
            self._free -= size

    def of(self, replies: Sequence[EncodedReply]) -> Tensor | None:
        """[N, d], replies end to end; None where one of them is not known."""
        if not all(reply in self._means for reply in replies):
            return None
        return torch.cat([self._means[reply] for reply in replies])


def base_mean(
    write: WriteLogits, h: Tensor, vocabulary: Tensor, workspace: Workspace | None = None
) -> Tensor:
    """Σ_a π₀(a) vocabulary[a], f32[N, r], of h [N, d] and vocabulary [V, r], which alone gets a gradient.

    By hand: π₀ = (¾, ¼), vocabulary = ((1), (5)): 2, and the gradient of it is ((¾), (¼)).
    """
    is_kept = torch.is_grad_enabled() and vocabulary.requires_grad
    space = workspace or Workspace()
    mean: Tensor = _BaseMean.apply(write, h, vocabulary, space, is_kept)  # type: ignore[no-untyped-call]
    return mean


class _BaseMean(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, write: WriteLogits, h: Tensor, vocabulary: Tensor, workspace: Workspace, is_kept: bool
    ) -> Tensor:
        mean = torch.empty(len(h), vocabulary.shape[1], dtype=torch.float32, device=h.device)
        with torch.autocast(h.device.type, enabled=False):
            u = vocabulary.float()
            kept = workspace.take(len(h) if is_kept else 0, len(u), h.device)  # π₀ [n, V]
            for rows, tile in tiles(kept, len(h)):
                _write_base(write, h[rows], tile)
                torch.mm(store(kept, rows, tile), u, out=mean[rows])
        ctx.write, ctx.workspace = write, workspace
        ctx.save_for_backward(h, kept)
        return mean

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        h, kept = ctx.saved_tensors
        with torch.autocast(h.device.type, enabled=False):
            total = kept.T @ grad[: len(kept)]
            ctx.workspace.give_back(kept)
            for rows, tile in tiles(kept, len(h), start=len(kept)):
                _write_base(ctx.write, h[rows], tile)
                total.addmm_(tile.T, grad[rows])
        return None, None, total, None, None


def _write_base(write: WriteLogits, h: Tensor, out: Tensor) -> None:
    write(h, out)
    torch.softmax(out, -1, out=out)
