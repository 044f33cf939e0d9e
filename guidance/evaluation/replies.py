"""Measured replies: hold what an evaluation reads of a reply, and score it with the parts of a head."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F
from tqdm import tqdm

from trimtab.guidance.features.source import FeatureSource
from trimtab.guidance.heads.forms import Head, Scalar, along, memory_of
from trimtab.guidance.heads.manifest import Manifest
from trimtab.guidance.policy import Policy
from trimtab.guidance.statistics import Floats
from trimtab.guidance.text.encoding import EncodedReply

_REPLIES_PER_BATCH = 64
_LOGITS_AT_ONCE = 1 << 24  # 64 MiB in fp32, of which a measure holds several


@dataclass(frozen=True, slots=True)
class MeasuredReply:
    """prompt: its index among the prompts. sample: its number among the prompt's replies; replies of the same
    prompt and sample have the same random numbers at every setting.
    kl: nats over the reply, of what was sampled from to the base.
    flips: tokens at which the two preferred different ones. logprob, base_logprob: of the drawn tokens under
    the two, summed; nan where it was not measured. rewards: by head, in standard units.
    finish_reason: "stop" or "length". num_run: tokens that the model was run on for it, the prompt's left
    out; 0 where that is unknown."""

    prompt: int
    text: str
    token_ids: tuple[int, ...]
    kl: float
    finish_reason: str
    flips: int = 0
    logprob: float = math.nan
    base_logprob: float = math.nan
    rewards: dict[str, float] = field(default_factory=dict)
    sample: int = 0
    num_run: int = 0


Heads = tuple[tuple[str, float], ...]
"""(name, weight) pairs."""

Scores = dict[str, list[float | None]]
"""By the name of the score, one per reply; None where the judge could not say."""


@dataclass(frozen=True, slots=True)
class HeadScores:
    """[N] each, raw; None for a part that the head does not have. reward: read at s_T. value: at the last
    position that it was trained at. log_ratio: ΔR = Σ_t log π₁/π₀ of the drawn tokens at strength 1."""

    reward: Floats | None
    value: Floats | None
    log_ratio: Floats | None


@torch.no_grad()
def score_with_head(
    head: Head,
    manifest: Manifest,
    features: FeatureSource,
    replies: Sequence[EncodedReply],
    *,
    show_progress: bool = True,
) -> HeadScores:
    """Reads the features in batches, so that a source that keeps nothing needs no more than a batch."""
    columns: list[tuple[Tensor | None, Tensor | None, Tensor | None]] = []
    part = manifest.parts.advantage
    bar = tqdm(total=len(replies), desc=f"head {manifest.name}", unit="reply", disable=not show_progress)
    with bar:
        for batch in batches(replies):
            h = [found.to(features.policy.device) for found in features.get(batch)]
            reward = None if head.reward is None else head.reward(torch.stack([s[-1] for s in h]).float())
            value = None if head.value is None else _last_values(head.value, h, batch)
            ratio = None
            if part is not None:
                ratio = torch.stack(
                    [
                        _log_ratio(head, part.scale, features.policy, s, r)
                        for s, r in zip(h, batch, strict=True)
                    ]
                )
            columns.append((reward, value, ratio))
            bar.update(len(batch))
    return HeadScores(*(_join(column) for column in zip(*columns, strict=True)))


def _last_values(part: Scalar, h: Sequence[Tensor], replies: Sequence[EncodedReply]) -> Tensor:
    until = [s[: max(reply.num_drawn, 1)].float() for s, reply in zip(h, replies, strict=True)]
    if memory_of(part) is None:
        return part(torch.stack([s[-1] for s in until]))
    lengths = torch.tensor([len(s) for s in until])
    return along(part, torch.cat(until), lengths)[lengths.cumsum(0) - 1]


def _log_ratio(head: Head, scale: float, policy: Policy, h: Tensor, reply: EncodedReply) -> Tensor:
    assert head.advantage is not None
    lm_head, total = policy.lm_head.float(), torch.zeros((), device=h.device)
    tokens = torch.tensor(reply.reply_ids[: reply.num_drawn], device=h.device)
    step = positions_at_once(policy)
    for start in range(0, reply.num_drawn, step):
        here = slice(start, min(start + step, reply.num_drawn))
        logits = policy.logits(h[here])
        tilted = logits + scale * head.advantage(h[here].float(), lm_head)
        wanted = tokens[here]
        total += F.cross_entropy(logits, wanted, reduction="sum")
        total -= F.cross_entropy(tilted, wanted, reduction="sum")
    return total


def positions_at_once(policy: Policy) -> int:
    """Whose logits are held at a time, so that a large vocabulary takes no more memory than a small one."""
    return max(1, _LOGITS_AT_ONCE // policy.vocab_size)


def batches(replies: Sequence[EncodedReply]) -> Iterator[Sequence[EncodedReply]]:
    """As many at once as have their features held."""
    for start in range(0, len(replies), _REPLIES_PER_BATCH):
        yield replies[start : start + _REPLIES_PER_BATCH]


def _join(column: Sequence[Tensor | None]) -> Floats | None:
    if any(piece is None for piece in column):
        return None
    return np.concatenate([piece.double().cpu().numpy() for piece in column if piece is not None])
