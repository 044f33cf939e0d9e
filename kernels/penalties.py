"""Logit bias and the repetition, presence and frequency penalties, from what a row's history holds."""

from __future__ import annotations

import torch
from torch import Tensor


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
