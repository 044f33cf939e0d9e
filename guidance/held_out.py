"""What a trained head is worth on prompts it was not trained on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from trimtab.guidance.head import LinearScalar, LowRankAdvantage, MlpScalar, TiedAdvantage
from trimtab.guidance.objectives import Pair, ReplyFeatures, lay_out
from trimtab.guidance.policy import Policy

_POSITIONS_PER_CHUNK = 4096


@dataclass(frozen=True, slots=True)
class TiltStatistics:
    """At each of N positions: ρ of the token that came, its centred advantage Ā, KL(π₁‖π₀), and whether π₁
    and π₀ prefer different tokens. All [N]."""

    log_ratio: Tensor
    centred: Tensor
    kl: Tensor
    flip: Tensor


@torch.no_grad()
def score_replies(part: LinearScalar | MlpScalar, replies: Sequence[ReplyFeatures]) -> Tensor:
    """The raw reward of each finished reply, read at s_T -> f32[len(replies)], on the CPU."""
    ends = torch.stack([reply.h[-1] for reply in replies])
    scores: Tensor = part(ends.to(part.bias.device).float()).cpu()
    return scores


@torch.no_grad()
def score_prefixes(part: LinearScalar | MlpScalar, replies: Sequence[ReplyFeatures]) -> list[Tensor]:
    """V(s_0) … V(s_{T−1}), raw, of each reply, on the CPU."""
    return [part(reply.h[:-1].to(part.bias.device).float()).cpu() for reply in replies]


def accuracy(chosen: Tensor, rejected: Tensor) -> float:
    """The share of pairs whose chosen reply scores higher; a tie counts half."""
    wins = (chosen > rejected).float() + 0.5 * (chosen == rejected).float()
    return wins.mean().item()


def length_accuracy(pairs: Sequence[Pair]) -> float:
    """The accuracy of the better of two rules that read nothing: pick the longer reply, pick the shorter."""
    chosen, rejected = (torch.tensor([len(r.tokens) for r in side]) for side in zip(*pairs, strict=True))
    longer = accuracy(chosen, rejected)
    return max(longer, 1 - longer)


@torch.no_grad()
def tilt_statistics(
    part: TiedAdvantage | LowRankAdvantage, policy: Policy, replies: Sequence[ReplyFeatures]
) -> TiltStatistics:
    """Statistics of the tilt at strength 1 along replies that are already written."""
    batch, lm_head = lay_out(replies), policy.lm_head.float()
    pieces = []
    for start in range(0, len(batch["tokens"]), _POSITIONS_PER_CHUNK):
        here = slice(start, start + _POSITIONS_PER_CHUNK)
        h, tokens = batch["h"][here].to(policy.device), batch["tokens"][here].to(policy.device)
        logits, advantage = policy.logits(h), part(h.float(), lm_head)
        base, tilt = logits.log_softmax(-1), (logits + advantage).log_softmax(-1)
        centred = advantage - (base.exp() * advantage).sum(-1, keepdim=True)
        pieces.append(
            (
                _pick(tilt, tokens) - _pick(base, tokens),
                _pick(centred, tokens),
                (tilt.exp() * (tilt - base)).sum(-1),
                tilt.argmax(-1) != base.argmax(-1),
            )
        )
    return TiltStatistics(*(torch.cat(column).cpu() for column in zip(*pieces, strict=True)))


def _pick(table: Tensor, tokens: Tensor) -> Tensor:
    return table.gather(1, tokens[:, None])[:, 0]


def slope(x: Tensor, y: Tensor) -> float | None:
    """The least-squares slope of y on x, with intercept; None where x does not vary. x, y: [N]."""
    x, y = x.double(), y.double()
    x = x - x.mean()
    spread = x.square().sum().item()
    return (x * y).sum().item() / spread if spread > 0 else None


def value_per_advantage(values: Sequence[Tensor], centred: Tensor) -> float | None:
    """The slope of V(s_t) − V(s_{t−1}) on Ā(s_{t−1}, y_t), 1 ≤ t < T.

    values: per reply V(s_0) … V(s_{T−1}), in standard units. centred: Ā at y_1 … y_T, replies end to end.
    """
    per_reply = torch.split(centred, [len(v) for v in values])
    return slope(torch.cat([a[:-1] for a in per_reply]), torch.cat([v.diff() for v in values]))


def explained_variance(values: Sequence[Tensor], rewards: Tensor) -> float:
    """1 − E(V(s_t) − r)² / Var r over all positions: 0 is the average reward, 1 a perfect forecast.

    values: per reply V(s_0) … V(s_{T−1}). rewards: [len(values)], in the same units.
    """
    target = torch.cat([reward.expand(len(v)) for v, reward in zip(values, rewards, strict=True)])
    error = (torch.cat(list(values)) - target).square().mean()
    return (1 - error / target.var(correction=0)).item()
