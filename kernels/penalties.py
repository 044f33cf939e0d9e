"""Logits of the base: a grammar's mask, logit bias, and penalties from what a row's history holds."""

# mypy: allow-untyped-defs, allow-incomplete-defs

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from trimtab.kernels.base_statistics import BLOCK_V
from trimtab.kernels.cpu import draw as cpu
from trimtab.kernels.dispatch import choose_backend, jit, tl, triton

WORD = 32  # tokens to an int32 of a mask


def _reference(logits: Tensor, rows: Tensor, bitmask: Tensor) -> None:
    """By a table of what eight bits add, which takes a fifth of the time of shifting every bit."""
    shifts = torch.arange(8, device=bitmask.device)
    is_set = torch.arange(256, device=bitmask.device)[:, None] >> shifts & 1
    added = torch.zeros(256, 8, device=bitmask.device).masked_fill_(is_set == 0, -torch.inf)
    octets = bitmask.contiguous().view(torch.uint8).int()  # little-endian: a word's lowest bits come first
    logits.index_add_(0, rows, F.embedding(octets, added).flatten(1)[:, : logits.shape[1]])


# One program per masked row and tile of the vocabulary.


@jit
def _tiles(
    logits, rows, bitmask, logits_stride, num_words, vocab_size, word: tl.constexpr, block: tl.constexpr
):  # fmt: skip
    place, tile = tl.program_id(0).to(tl.int64), tl.program_id(1)
    tokens = tile * block + tl.arange(0, block)
    inside = tokens < vocab_size
    words = tl.load(bitmask + place * num_words + tokens // word, mask=inside, other=-1)
    forbidden = (words >> (tokens % word)) & 1 == 0
    row = tl.load(rows + place)
    lowest = tl.full((block,), float("-inf"), tl.float32)
    tl.store(logits + row * logits_stride + tokens, lowest, mask=inside & forbidden)


def _launch(logits: Tensor, rows: Tensor, bitmask: Tensor) -> None:
    assert logits.stride(1) == 1
    assert bitmask.is_contiguous()
    vocab_size = logits.shape[1]
    _tiles[len(rows), triton.cdiv(vocab_size, BLOCK_V)](
        logits, rows, bitmask, logits.stride(0), bitmask.shape[1], vocab_size, word=WORD, block=BLOCK_V
    )


def apply_token_mask(logits: Tensor, rows: Tensor, bitmask: Tensor, backend: str | None = None) -> None:
    """Set the logits of forbidden tokens to −inf, in place.

    Args:
        logits: f32[B, V], finite or −inf.
        rows: i64[R], distinct rows of `logits`.
        bitmask: i32[R, ⌈V/32⌉] for these rows; token t is allowed where bit t mod 32 of word ⌊t/32⌋ is set.
        backend: see `choose_backend`.
    """
    assert bitmask.shape == (len(rows), -(-logits.shape[1] // WORD))
    _BACKENDS[choose_backend(logits.device, backend, _BACKENDS)](logits, rows, bitmask)


_BACKENDS = {"reference": _reference, "triton": _launch, "cpu": cpu.apply_token_mask}


def add_bias(logits: Tensor, places: Tensor, values: Tensor) -> None:
    """Add f32[E] at distinct places i64[E] of the flattened logits f32[B, V], in place."""
    logits.view(-1).index_add_(0, places, values)


def apply_penalties(
    logits: Tensor,
    *,
    rows: Tensor,
    tokens: Tensor,
    counts: Tensor,
    repetition: Tensor,
    presence: Tensor,
    frequency: Tensor,
) -> None:
    """Penalise the given rows of `logits` in place, for what their histories hold.

    A token of prompt or reply has its logit divided by `repetition` if positive and multiplied if not
    (N. Keskar et al., CTRL, 2019); then a token of the reply loses `presence` once and `frequency` per
    occurrence (OpenAI). Time and memory grow with the distinct tokens of the history, not with the
    vocabulary, and the host never waits for the device.

    Args:
        logits: f32[B, V].
        rows: i64[R], distinct rows of `logits`; what follows has one entry per row.
        tokens: i64[R, W], W ≥ 1, the tokens of prompt and reply, in any order; one may be there repeatedly.
        counts: i64[R, W], how often each is in the reply; the same wherever a token is repeated, so that
            entries that write to one place cannot race.
        repetition: f32[R], 1 is off. presence, frequency: f32[R], 0 is off.
    """
    row = rows[:, None]
    old = logits[row, tokens]
    new = torch.where(old > 0, old / repetition[:, None], old * repetition[:, None])
    logits[row, tokens] = new - frequency[:, None] * counts - presence[:, None] * (counts > 0)


def count_drawn(
    table: Tensor, rows: Tensor, tokens: Tensor, counts: Tensor, num_entries: Tensor, drawn: Tensor
) -> None:
    """Count one drawn token for each of R rows of a table of tokens and counts, in place.

    The token's count grows by one wherever it is; and one entry is added, which is the token where it is
    new, else the row's first entry once more. The host never waits for the device.

    Args:
        table: i64[P, 2, C] of (token, count).
        rows: i64[R], distinct rows of the table.
        tokens, counts: i64[R, W], the leading entries of these rows; what is behind a row's last one repeats
            its first.
        num_entries: i64[R], at most W and below C.
        drawn: i64[R].
    """
    capacity, width = table.shape[2], tokens.shape[1]
    is_drawn = tokens == drawn[:, None]
    table[:, 1, :width].index_add_(0, rows, is_drawn.long())
    is_new = ~is_drawn.any(1)
    token = torch.where(is_new, drawn, tokens[:, 0])
    count = torch.where(is_new, 1, counts[:, 0] + is_drawn[:, 0])
    at = rows * (2 * capacity) + num_entries
    table.view(-1).index_copy_(0, torch.cat([at, at + capacity]), torch.cat([token, count]))
