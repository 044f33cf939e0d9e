"""Logit bias and the repetition, presence and frequency penalties, from a row's token history."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def apply_penalties(
    logits: Tensor,
    *,
    rows: Tensor,
    tokens: Tensor,
    prompt_lengths: Tensor,
    lengths: Tensor,
    repetition: Tensor,
    presence: Tensor,
    frequency: Tensor,
    logit_bias: Sequence[Sequence[tuple[int, float]]],
) -> None:
    """Change the given rows of `logits` in place: add the bias, then penalise what the history holds.

    A token of prompt or reply has its logit divided by `repetition` if positive and multiplied if not
    (N. Keskar et al., CTRL, 2019); then a token of the reply loses `presence` once and `frequency` per
    occurrence (OpenAI). Time and memory grow with the history, not with the vocabulary, and the host never
    waits for the device.

    Args:
        logits: f32[B, V].
        rows: i64[R], distinct rows of `logits`; what follows has one entry per row.
        tokens: i64[R, L], the history, padded on the right with anything.
        prompt_lengths, lengths: i64[R], tokens of the prompt, and of prompt and reply.
        repetition: f32[R], 1 is off. presence, frequency: f32[R], 0 is off.
        logit_bias: for each row (token, bias) pairs with distinct tokens below V.
    """
    _add_bias(logits, rows, logit_bias)
    at = torch.arange(tokens.shape[1], device=tokens.device)
    in_history = at < lengths[:, None]  # [R, L]
    in_reply = in_history & (at >= prompt_lengths[:, None])

    # Every entry of a token, padding too, writes one and the same value, so duplicates cannot race.
    tokens = torch.where(in_history, tokens, tokens[:, :1].clamp(0, logits.shape[1] - 1))
    replies = torch.where(in_reply, tokens, logits.shape[1]).sort(1).values
    after = torch.searchsorted(replies, tokens, right=True)
    count = after - torch.searchsorted(replies, tokens)

    row = rows[:, None]
    old = logits[row, tokens]
    new = torch.where(old > 0, old / repetition[:, None], old * repetition[:, None])
    new = new - frequency[:, None] * count - presence[:, None] * (count > 0)
    logits[row, tokens] = torch.where(lengths[:, None] > 0, new, old)


def _add_bias(logits: Tensor, rows: Tensor, logit_bias: Sequence[Sequence[tuple[int, float]]]) -> None:
    # Rows of one request, or of one experiment, share their pairs: each list is read once.
    tables = {id(pairs): torch.tensor(pairs, dtype=torch.float64) for pairs in logit_bias if pairs}
    biased = [(i, tables[id(pairs)]) for i, pairs in enumerate(logit_bias) if pairs]
    if not biased:
        return
    entries = torch.cat([table for _, table in biased])  # [E, 2]
    index = torch.cat([torch.full((len(table),), i) for i, table in biased])
    places = _to_device(torch.stack([index, entries[:, 0].long()]), logits.device)
    place = rows[places[0]], places[1]
    logits[place] += _to_device(entries[:, 1].to(logits.dtype), logits.device)


def _to_device(values: Tensor, device: torch.device) -> Tensor:
    """A copy that does not wait for what the device still has to do: from pinned memory where it matters."""
    if device.type != "cuda":
        return values.to(device)
    return values.pin_memory().to(device, non_blocking=True)
