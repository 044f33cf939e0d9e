"""KL of a fine-tuned policy from its base: exact, along its own replies."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F
from tqdm import tqdm

from trimtab.guidance.errors import PolicyError
from trimtab.guidance.features.source import StreamedFeatures
from trimtab.guidance.policy import Policy
from trimtab.guidance.text.encoding import EncodedReply

_REPLIES_AT_ONCE = 64
_LOGITS_AT_ONCE = 1 << 24


@dataclass(frozen=True, slots=True)
class TunedReply:
    """kl: nats. base_logprob: of the drawn tokens under the base, summed."""

    kl: float
    base_logprob: float


def measure_tuned(
    base: Policy, tuned: Policy, replies: Sequence[EncodedReply], *, show_progress: bool = True
) -> list[TunedReply]:
    """KL(tuned ‖ base) of each reply: Σ_t KL of the two distributions of y_t, over the drawn tokens.

    replies: sampled from the tuned policy at temperature 1; then the mean is an unbiased estimate of the KL
    between the policies' distributions of replies, of less variance than log-ratios of the drawn tokens.

    By hand: base (½, ½), tuned (¾, ¼) at one token: ¾ ln 1.5 + ¼ ln ½ = 0.1308; its base_logprob is ln ½.

    Raises PolicyError where the two have different vocabularies.
    """
    if base.identity.vocab_size != tuned.identity.vocab_size:
        raise PolicyError(
            f"{tuned.identity.base_model.name} has {tuned.identity.vocab_size} tokens and "
            f"{base.identity.base_model.name} {base.identity.vocab_size}: measure against the model that "
            "was tuned"
        )
    found: list[TunedReply] = []
    with tqdm(total=len(replies), desc="KL", unit="reply", disable=not show_progress) as bar:
        for start in range(0, len(replies), _REPLIES_AT_ONCE):
            some = replies[start : start + _REPLIES_AT_ONCE]
            features = (StreamedFeatures(policy).get(some) for policy in (base, tuned))
            for reply, h, h_tuned in zip(some, *features, strict=True):
                ids = torch.tensor(reply.reply_ids[: reply.num_drawn])
                found.append(_along(base, tuned, ids, h[: len(ids)], h_tuned[: len(ids)]))
            bar.update(len(some))
    return found


@torch.no_grad()
def _along(base: Policy, tuned: Policy, ids: Tensor, h: Tensor, h_tuned: Tensor) -> TunedReply:
    """ids: [T] that were drawn. h, h_tuned: [T, d] of the two policies."""
    rows = max(1, _LOGITS_AT_ONCE // base.identity.vocab_size)
    kl, base_logprob = 0.0, 0.0
    for drawn, some, some_tuned in zip(ids.split(rows), h.split(rows), h_tuned.split(rows), strict=True):
        log_base = base.logits(some.to(base.device)).log_softmax(-1)
        log_tuned = tuned.logits(some_tuned.to(tuned.device)).log_softmax(-1).to(base.device)
        kl += F.kl_div(log_base, log_tuned, reduction="none", log_target=True).sum(-1).double().sum().item()
        base_logprob += log_base.gather(1, drawn[:, None].to(base.device)).double().sum().item()
    return TunedReply(max(kl, 0.0), base_logprob)  # rounding may leave the KL just below zero
