"""Means of the vocabulary's rows under the base: what centres an advantage that is a product."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from trimtab.guidance.losses.vocabulary_tiles import Workspace, WriteLogits, store, tiles
from trimtab.guidance.policy import Policy
from trimtab.guidance.text.encoding import EncodedReply

REMEMBERED_BYTES = 2**28


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
