"""Cost of a change to the policy: exact KL along the replies that were sampled under it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.nn import functional as F

from trimtab.guidance.evaluation.replies import MeasuredReply, batches, positions_at_once
from trimtab.guidance.features.source import FeatureSource
from trimtab.guidance.policy import Policy
from trimtab.guidance.text.encoding import EncodedReply

Changed = Callable[[slice, Tensor], Tensor]
"""Positions of a reply, and the policy's own logits there [n, V] → the logits that were sampled from."""


@dataclass(frozen=True, slots=True)
class ReplyCost:
    """What a change costs along one reply. kl: nats. flips: tokens. base_logprob: log π₀, summed."""

    kl: float
    flips: int
    base_logprob: float

    def of(self, reply: MeasuredReply) -> MeasuredReply:
        """The reply with this for what the engine said, which knew of no change."""
        return replace(reply, kl=self.kl, flips=self.flips, base_logprob=self.base_logprob)


@torch.no_grad()
def cost_along(policy: Policy, h: Tensor, reply: EncodedReply, changed: Changed) -> ReplyCost:
    """Σ_t KL(π(·|s_t) ‖ π₀(·|s_t)) over the drawn tokens, of whole distributions: the mean over replies is an
    unbiased estimate of the KL of replies, of less variance than log-ratios of the drawn tokens.

    h: [T+1, d], as the plain policy reads the reply.

    By hand: plain (½, ½), changed (¾, ¼) at one token: ¾ ln 1.5 + ¼ ln ½ = 0.1308.
    """
    kl, flips, base_logprob = 0.0, 0, 0.0
    tokens = torch.tensor(reply.reply_ids[: reply.num_drawn], device=policy.device)
    step = positions_at_once(policy)
    for start in range(0, len(tokens), step):
        here = slice(start, min(start + step, len(tokens)))
        logits = policy.logits(h[here].to(policy.device))
        base, ours = logits.log_softmax(-1), changed(here, logits).log_softmax(-1)
        kl += float(F.kl_div(base, ours, reduction="none", log_target=True).sum(-1).double().sum())
        flips += int((ours.argmax(-1) != base.argmax(-1)).sum())
        base_logprob += float(base.gather(1, tokens[here, None]).sum())
    return ReplyCost(max(kl, 0.0), flips, base_logprob)  # rounding may leave the KL just below zero


def costs_in_another_state(
    features: FeatureSource,
    plain: Sequence[EncodedReply],
    states: Callable[[slice], Sequence[Tensor]],
) -> Iterator[tuple[ReplyCost, Tensor]]:
    """Of replies that were sampled from the policy's own output embedding in other states than the plain
    ones: behind another prompt, or with its layers changed. Each with the plain s_T [d].

    plain: the replies behind the plain prompts. states: h [T+1, d] of each of a slice of them, as sampled.
    """
    policy, start = features.policy, 0
    for batch in batches(plain):
        others = states(slice(start, start + len(batch)))
        start += len(batch)
        for reply, h, other in zip(batch, features.get(batch), others, strict=True):
            yield cost_along(policy, h, reply, _from(policy, other)), h[-1]


def _from(policy: Policy, h: Tensor) -> Changed:
    return lambda here, _: policy.logits(h[here].to(policy.device))
