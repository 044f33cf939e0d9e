"""Shortlist of next tokens: stands for the vocabulary where an advantage learns from replies that are there,
so that a step costs a few tokens a position and not all of them."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F
from tqdm import tqdm

from trimtab.guidance.errors import DataError
from trimtab.guidance.features.source import FeatureSource
from trimtab.guidance.losses.fused_log_ratio import log_normaliser
from trimtab.guidance.losses.vocabulary_tiles import WriteLogits, tile_rows
from trimtab.guidance.policy import Policy
from trimtab.guidance.text.encoding import EncodedReply
from trimtab.guidance.training.objectives.base import fetch

logger = logging.getLogger(__name__)
AUTO_SIZE, AUTO_VOCABULARY = 128, 16384
MAX_BYTES = 2**30
_ROWS = 256


class Shortlist(NamedTuple):
    """At each of n positions: listed i64[n, C], tokens, of which the first half are the likeliest;
    log_weight f32[n, C], the logarithms of weights that sum to 1 as π₀ does; base f32[n], log π₀ of the token
    that came."""

    listed: Tensor
    log_weight: Tensor
    base: Tensor


def resolve_size(size: int | Literal["auto"], policy: Policy) -> int:
    """Tokens of a shortlist, 0 for none.

    Raises:
        DataError: as many as the vocabulary has, or more.
    """
    if size == "auto":
        is_slow = policy.device.type == "cpu" and policy.vocab_size >= AUTO_VOCABULARY
        return AUTO_SIZE if is_slow else 0
    if size >= policy.vocab_size:
        raise DataError(
            f"advantage.shortlist={size} is no less than the vocabulary of {policy.vocab_size}: give 0"
        )
    return size


class Shortlists:
    """Shortlists at the positions of replies, which training does not change: made once."""

    def __init__(self, features: FeatureSource, size: int | Literal["auto"], seed: int) -> None:
        """size: as resolve_size takes it."""
        self.features, self.size, self.seed = features, resolve_size(size, features.policy), seed
        self._known: dict[EncodedReply, Shortlist] = {}

    def make(self, replies: Sequence[EncodedReply], *, show_progress: bool) -> None:
        """Of those that are new; of no more than MAX_BYTES hold: the others are trained by the whole
        vocabulary. The same replies in the same order give the same bits."""
        if not self.size:
            return
        new = [reply for reply in dict.fromkeys(replies) if reply not in self._known]
        free = MAX_BYTES // (12 * self.size) - sum(len(known.base) for known in self._known.values())
        generator = torch.Generator().manual_seed(self.seed)
        policy = self.features.policy
        bar = tqdm(total=len(new), desc="shortlists", unit="reply", disable=not show_progress or not new)
        with bar:
            for some in _in_tiles(new, tile_rows(policy.vocab_size)):
                counts = [reply.num_drawn for reply in some]
                free -= sum(counts)
                if free < 0:
                    logger.warning(
                        "shortlists of %d of %d replies fill %.1f GB: the others are trained by the whole "
                        "vocabulary, which is slower; a smaller advantage.shortlist holds more",
                        len(self._known),
                        len(new),
                        MAX_BYTES / 1e9,
                    )
                    return
                found = fetch(self.features, some)
                h = torch.cat([reply.h[: len(reply.tokens)] for reply in found]).to(policy.device)
                tokens = torch.cat([reply.tokens for reply in found]).to(policy.device)
                made = make_shortlist(policy.write_logits, h, tokens, policy.vocab_size, self.size, generator)
                columns = (column.cpu().split(counts) for column in made)
                self._known |= dict(zip(some, map(Shortlist, *columns), strict=True))
                bar.update(len(some))

    def of(self, replies: Sequence[EncodedReply]) -> dict[str, Tensor]:
        """By name what a Shortlist holds, replies end to end; nothing where one of them has none."""
        if not self.size or not all(reply in self._known for reply in replies):
            return {}
        known = [self._known[reply] for reply in replies]
        return {name: torch.cat([getattr(one, name) for one in known]) for name in Shortlist._fields}


def _in_tiles(replies: Sequence[EncodedReply], num_positions: int) -> Iterator[list[EncodedReply]]:
    """Consecutive replies of together about as many positions."""
    some: list[EncodedReply] = []
    for reply in replies:
        some.append(reply)
        if sum(one.num_drawn for one in some) >= num_positions:
            yield some
            some = []
    if some:
        yield some


@torch.no_grad()
def make_shortlist(
    write: WriteLogits, h: Tensor, tokens: Tensor, vocab_size: int, size: int, generator: torch.Generator
) -> Shortlist:
    """The size − size // 2 likeliest tokens with their π₀, and size // 2 drawn from the others, one from each
    of as many equal shares of their probability, each of which it stands for: Σ w e^A estimates E_{π₀}[e^A]
    without bias, and its logarithm nearly so.

    h: [N, d]. tokens: i64[N], those that came.
    """
    pieces, num = [], tile_rows(vocab_size)
    for some_h, some_tokens in zip(h.split(num), tokens.split(num), strict=True):
        z = torch.empty(len(some_h), vocab_size, device=h.device)
        write(some_h, z)
        base = z.gather(1, some_tokens[:, None])[:, 0] - log_normaliser(z)
        pieces.append((*_choose(z, size, generator), base))
    return Shortlist(*(torch.cat(column) for column in zip(*pieces, strict=True)))


def _choose(z: Tensor, size: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """i64[n, C] and their log weights, of z [n, V], which is written to."""
    num_drawn = size // 2
    probability = torch.softmax(z, -1, out=z)
    weight, likeliest = probability.topk(size - num_drawn)
    if not num_drawn:
        return likeliest, weight.log()
    others = probability.scatter_(1, likeliest, 0.0).cumsum_(1)  # [n, V]
    total = others[:, -1:].clone()
    within = 1 - torch.rand(len(z), num_drawn, generator=generator).to(z.device)  # in (0, 1]
    share = (torch.arange(num_drawn, device=z.device) + within) / num_drawn
    drawn = torch.searchsorted(others, (share * total).minimum(total))
    stands_for = (1 - weight.sum(1, keepdim=True)).clamp(min=1e-30) / num_drawn
    weight = torch.cat([weight, stands_for.expand(-1, num_drawn)], 1)
    return torch.cat([likeliest, drawn], 1), (weight / weight.sum(1, keepdim=True)).log()


def shortlist_log_ratio(
    column: Tensor, vocabulary: Tensor, tokens: Tensor, listed: Tensor, log_weight: Tensor
) -> Tensor:
    """ρ = A(y) − log Σ_c w_c e^{A(c)}, [N], with A = column · vocabularyᵀ: what fused_log_ratio gives
    where the shortlist is the vocabulary and w is π₀.

    column: f32[N, r]. vocabulary: f32[V, r]. tokens: i64[N], y. listed: i64[N, C]. log_weight: f32[N, C].

    By hand: w = (½, ½), column = (ln 3), vocabulary = ((1), (0)), y = 0: ρ = ln 3 − ln 2 = 0.4054651,
    π₁ = (¾, ¼), ∂ρ/∂column = 1 − ¾ = ¼, ∂ρ/∂vocabulary = ln 3 · ((1 − ¾), (−¼)).
    """
    ratio: Tensor = _ShortlistRatio.apply(column, vocabulary, tokens, listed, log_weight)  # type: ignore[no-untyped-call]
    return ratio


class _ShortlistRatio(torch.autograd.Function):
    """Autograd would keep the listed rows of the vocabulary, [N, C, r], and their gradient."""

    @staticmethod
    def forward(
        ctx: Any, column: Tensor, vocabulary: Tensor, tokens: Tensor, listed: Tensor, log_weight: Tensor
    ) -> Tensor:
        ctx.dtypes = column.dtype, vocabulary.dtype
        with torch.autocast(column.device.type, enabled=False):
            column, u = column.float(), vocabulary.float()
            tilted = torch.empty_like(log_weight)  # π₁ of the listed [N, C]
            mean, normaliser = torch.empty_like(column), column.new_empty(len(column))
            for start in range(0, len(column), _ROWS):
                rows = slice(start, start + _ROWS)
                of_listed = F.embedding(listed[rows], u)  # [n, C, r]
                scores = log_weight[rows] + (of_listed @ column[rows, :, None])[:, :, 0]
                normaliser[rows] = scores.logsumexp(1)
                tilted[rows] = scores.softmax(1)
                mean[rows] = (tilted[rows, None] @ of_listed)[:, 0]
            of_token = (column * u[tokens]).sum(1)
        ctx.save_for_backward(column, u, tokens, listed, tilted, mean)
        return of_token - normaliser

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        column, u, tokens, listed, tilted, mean = ctx.saved_tensors
        with torch.autocast(column.device.type, enabled=False):
            grad_column = grad[:, None] * (u[tokens] - mean)
            # ∂ρ/∂vocabulary is (e_y − π₁) columnᵀ, whose first factor has C + 1 numbers of V.
            places = torch.cat([tokens[:, None], listed], 1)
            factor = torch.cat([torch.ones_like(grad)[:, None], -tilted], 1)
            position = torch.arange(len(column), device=column.device)[:, None].expand_as(places)
            sparse = torch.sparse_coo_tensor(
                torch.stack([places.flatten(), position.flatten()]),
                factor.flatten(),
                (len(u), len(column)),
                check_invariants=False,
            )
            grad_vocabulary = sparse @ (grad[:, None] * column)
        return grad_column.to(ctx.dtypes[0]), grad_vocabulary.to(ctx.dtypes[1]), None, None, None
