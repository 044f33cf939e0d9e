"""What could come next after prefixes of replies: the policy's likeliest tokens, each fed to it once."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from trimtab.guidance.policy import Policy, output_embedding_input

_CACHED_TOKENS = 65536  # K/V of a batch, over all candidates of all its prefixes


@dataclass(frozen=True, slots=True)
class Candidates:
    """Of one prefix: h [d], where the next token is predicted; tokens i64[K], the likeliest first; weight
    [K], their π₀; after [K, d], h once each has been appended. On the CPU, in float32."""

    h: Tensor
    tokens: Tensor
    weight: Tensor
    after: Tensor


def run_candidates(
    policy: Policy, prefixes: Sequence[tuple[int, ...]], top_k: int
) -> Iterator[tuple[int, Candidates]]:
    """(index of a prefix, its candidates), in any order. Prefixes are token ids from the prompt's start on.

    Each prefix runs once, and its K/V serves all of its candidates. Batches hold prefixes of one length:
    nothing is padded, so any causal LM will do.
    """
    by_length: dict[int, list[int]] = defaultdict(list)
    for index, prefix in enumerate(prefixes):
        by_length[len(prefix)].append(index)
    for length, indices in by_length.items():
        size = max(1, _CACHED_TOKENS // (length * top_k))
        for start in range(0, len(indices), size):
            batch = indices[start : start + size]
            yield from zip(batch, _run(policy, [prefixes[i] for i in batch], top_k), strict=True)


@torch.no_grad()
def _run(policy: Policy, prefixes: Sequence[tuple[int, ...]], top_k: int) -> Iterator[Candidates]:
    model, ids = policy.model, torch.tensor(prefixes, device=policy.device)
    with output_embedding_input(model, lambda h: h[:, -1:]) as seen:
        cache = model(input_ids=ids, use_cache=True).past_key_values
    h = seen[0][:, -1]
    weight, tokens = policy.logits(h).softmax(-1).topk(min(top_k, policy.identity.vocab_size))
    cache.batch_repeat_interleave(tokens.shape[1])
    with output_embedding_input(model, lambda h: h) as seen:
        model(input_ids=tokens.reshape(-1, 1), past_key_values=cache, use_cache=True)
    after = seen[0].view(*tokens.shape, -1).float()
    columns = (h.float(), tokens, weight, after)
    return (Candidates(*row) for row in zip(*(column.cpu() for column in columns), strict=True))
