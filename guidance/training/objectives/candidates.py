"""What could come next after prefixes of replies: the policy's likeliest tokens, each fed to it once."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from trimtab.guidance.policy import Policy, output_embedding_input

_TOKENS_AT_ONCE = 16384  # of rows, with their padding, and of candidates


@dataclass(frozen=True, slots=True)
class Candidates:
    """Of n prefixes of a row: h [n, d], where the next token is predicted; tokens i64[n, K], the likeliest
    first; weight [n, K], their π₀; after [n, K, d], h once each has been appended. On the CPU, in float32."""

    h: Tensor
    tokens: Tensor
    weight: Tensor
    after: Tensor


def run_candidates(
    policy: Policy, rows: Sequence[tuple[int, ...]], lengths: Sequence[Sequence[int]], top_k: int
) -> Iterator[tuple[int, Candidates]]:
    """(index of a row, the candidates of its prefixes), in any order.

    rows: token ids from the prompt's start on. lengths: of each row's prefixes, 1 … len(row).

    Where the policy attends to all that is before a token, each row runs once, and the candidates of all of
    its prefixes read its K/V behind a mask; else each prefix runs by itself.
    """
    order = sorted(range(len(rows)), key=lambda index: len(rows[index]), reverse=True)
    if not order:
        return
    run: _Run = _together if _can_mask(policy) else _apart
    longest = order[0]
    if run is _together and not _agree(policy, rows[longest], lengths[longest], top_k):
        run = _apart
    while order:
        tokens = len(rows[order[0]]) + top_k * max(len(some) for some in lengths)
        size = max(1, _TOKENS_AT_ONCE // tokens)
        batch, order = order[:size], order[size:]
        found = run(policy, [rows[i] for i in batch], [lengths[i] for i in batch], top_k)
        yield from zip(batch, found, strict=True)


_Run = Callable[[Policy, Sequence[tuple[int, ...]], Sequence[Sequence[int]], int], list[Candidates]]


def _can_mask(policy: Policy) -> bool:
    """Not where layers keep a window of the K/V, from which a mask's columns would be missing."""
    config = policy.model.config.get_text_config()
    kinds = getattr(config, "layer_types", None)
    return set(kinds) == {"full_attention"} if kinds else not getattr(config, "sliding_window", None)


def _agree(policy: Policy, row: tuple[int, ...], lengths: Sequence[int], top_k: int) -> bool:
    """Whether the policy honours a mask of ours: not all do that add their own to the scores."""
    ours, plain = (run(policy, [row], [lengths[-1:]], top_k)[0].after for run in (_together, _apart))
    return bool((ours - plain).norm() <= 0.02 * plain.norm())


@torch.no_grad()
def _together(
    policy: Policy, rows: Sequence[tuple[int, ...]], lengths: Sequence[Sequence[int]], top_k: int
) -> list[Candidates]:
    """Rows are padded on their right, and lengths by repeating the last: the mask hides the first, and the
    second are cut off."""
    ids = pad_sequence([torch.tensor(row) for row in rows], batch_first=True).to(policy.device)
    most = max(len(some) for some in lengths)
    ends = torch.tensor([[*some, *[some[-1]] * (most - len(some))] for some in lengths]).to(policy.device)
    with output_embedding_input(policy.model, lambda h: h[:, :1]) as seen:
        cache = policy.model(input_ids=ids, use_cache=True).past_key_values
    h = seen[0][torch.arange(len(rows), device=policy.device)[:, None], ends - 1]  # [B, n, d]
    weight, tokens = _likeliest(policy, h, top_k)
    places = ends.repeat_interleave(tokens.shape[2], 1)  # [B, n K]
    with output_embedding_input(policy.model, lambda h: h[:, :1]) as seen:
        policy.model(
            input_ids=tokens.flatten(1),
            position_ids=places,
            attention_mask=_mask(places, ids.shape[1], h.dtype),
            past_key_values=cache,
            use_cache=True,
        )
    columns = [
        column.cpu() for column in (h.float(), tokens, weight, seen[0].view(*tokens.shape, -1).float())
    ]
    return [Candidates(*(column[row, : len(some)] for column in columns)) for row, some in enumerate(lengths)]


def _mask(places: Tensor, num_cached: int, dtype: torch.dtype) -> Tensor:
    """[B, 1, Q, num_cached + Q], added to scores: a candidate sees the row before its place, and itself."""
    before = torch.arange(num_cached, device=places.device) < places[:, :, None]  # [B, Q, num_cached]
    itself = torch.eye(places.shape[1], dtype=torch.bool, device=places.device).expand(len(places), -1, -1)
    seen = torch.cat([before, itself], 2)[:, None]
    return torch.zeros(seen.shape, dtype=dtype, device=places.device).masked_fill(
        ~seen, torch.finfo(dtype).min
    )


@torch.no_grad()
def _apart(
    policy: Policy, rows: Sequence[tuple[int, ...]], lengths: Sequence[Sequence[int]], top_k: int
) -> list[Candidates]:
    """Each prefix by itself, its K/V copied for each of its candidates."""
    found = []
    for row, some in zip(rows, lengths, strict=True):
        each = [_one(policy, row[:length], top_k) for length in some]
        found.append(Candidates(*(torch.stack(column).cpu() for column in zip(*each, strict=True))))
    return found


def _one(policy: Policy, prefix: tuple[int, ...], top_k: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    with output_embedding_input(policy.model, lambda h: h[:, -1:]) as seen:
        ids = torch.tensor([prefix], device=policy.device)
        cache = policy.model(input_ids=ids, use_cache=True).past_key_values
    h = seen[0][0, -1]
    weight, tokens = _likeliest(policy, h, top_k)
    cache.batch_repeat_interleave(len(tokens))
    with output_embedding_input(policy.model, lambda h: h) as seen:
        policy.model(input_ids=tokens[:, None], past_key_values=cache, use_cache=True)
    return h.float(), tokens, weight, seen[0][:, -1].float()


def _likeliest(policy: Policy, h: Tensor, top_k: int) -> tuple[Tensor, Tensor]:
    """π₀ and ids of the likeliest tokens, [..., K] each, of h [..., d]."""
    logits = policy.logits(h.reshape(-1, h.shape[-1])).view(*h.shape[:-1], -1)
    weight, tokens = logits.softmax(-1).topk(min(top_k, logits.shape[-1]))
    return weight, tokens
