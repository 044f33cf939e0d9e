"""Credit of an iteration's tokens: advantages, and what a value should forecast."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from trimtab.guidance.losses.common import keep, masked_mean
from trimtab.guidance.losses.returns import gae, group_baseline, group_normalise, reward_to_go, whiten


@dataclass(frozen=True, slots=True)
class Scored:
    """B replies of at most T tokens: rewards and kl [B, T] of the drawn tokens, values [B, T] before them,
    mask bool[B, T], group i64[B], the reply's prompt.

    kl: nats; of the drawn tokens (sampled), or KL(π‖π₀) before them (exact), whose own gradient the loss
    takes. is_dense: the rewards were given to tokens; else each reply's is on its last one.
    """

    rewards: Tensor
    kl: Tensor
    values: Tensor
    mask: Tensor
    group: Tensor
    is_dense: bool
    is_exact: bool
    tau: float
    discount: float
    lam: float

    def penalised(self) -> Tensor:
        """r_t − τ kl_t, [B, T]. An exact KL at s_{t−1} is past when y_t is drawn: y_t answers for that at
        s_t, γ later."""
        kl = self.discount * F.pad(keep(self.kl, self.mask)[:, 1:], (0, 1)) if self.is_exact else self.kl
        return keep(self.rewards, self.mask) - self.tau * keep(kl, self.mask)


@dataclass(frozen=True, slots=True)
class Credit:
    """advantages [B, T]; returns [B, T], of the value. kl_weight: of the exact KL in the loss, τ in the
    units of the advantages."""

    advantages: Tensor
    returns: Tensor
    kl_weight: float


def estimated(scored: Scored) -> Credit:
    """GAE, whitened over the mask (PPO)."""
    advantages, returns = gae(
        scored.penalised(), scored.values, scored.mask, gamma=scored.discount, lam=scored.lam
    )
    centred = keep(advantages - masked_mean(advantages, scored.mask), scored.mask)
    spread = (masked_mean(centred.square(), scored.mask) + 1e-8).sqrt().item()
    return Credit(whiten(advantages, scored.mask), returns, scored.tau / spread)


def less_value(scored: Scored) -> Credit:
    """Reward-to-go less the value's forecast (REINFORCE with a baseline)."""
    returns = reward_to_go(scored.penalised(), scored.mask, scored.discount)
    return Credit(keep(returns - scored.values, scored.mask), returns, scored.tau)


def leave_one_out(scored: Scored) -> Credit:
    """R_i = Σ_t r_t − τ Σ_t kl_t less the mean of the prompt's other replies (RLOO). Where tokens were
    rewarded, reward-to-go less the mean of that over the other replies' tokens."""
    to_go, own = _totals(scored, scored.penalised())
    baseline = group_baseline(own, scored.group)
    return Credit(keep(to_go - baseline[:, None], scored.mask), to_go, scored.tau)


def normalised(scored: Scored) -> Credit:
    """(R − mean)/(std + 1e-4) among the prompt's replies, without the KL, which is the loss's (GRPO). Where
    tokens were rewarded, R is reward-to-go, among all tokens of these replies."""
    to_go, own = _totals(scored, keep(scored.rewards, scored.mask))
    if not scored.is_dense:
        advantages = group_normalise(own, scored.group)[:, None].expand_as(to_go)
        return Credit(keep(advantages, scored.mask), to_go, scored.tau)
    mean, spread = _group_spread(to_go, scored)
    return Credit(keep((to_go - mean) / (spread + 1e-4), scored.mask), to_go, scored.tau)


def _totals(scored: Scored, rewards: Tensor) -> tuple[Tensor, Tensor]:
    """What each token is credited with before a baseline, [B, T], and each reply's mean of that, [B]."""
    if not scored.is_dense:
        total = rewards.sum(1)
        return keep(total[:, None], scored.mask), total
    to_go = reward_to_go(rewards, scored.mask, scored.discount)
    return to_go, to_go.sum(1) / scored.mask.sum(1)


def _group_spread(to_go: Tensor, scored: Scored) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation over all tokens of the replies to a prompt, [B, 1] each."""
    group, mask = scored.group, scored.mask
    num_groups = int(group.max()) + 1

    def total(x: Tensor) -> Tensor:
        return torch.zeros(num_groups, dtype=x.dtype).index_add(0, group, x)[group]

    count = total(mask.sum(1).to(to_go.dtype))
    mean = (total(to_go.sum(1)) / count)[:, None]
    variance = total(keep(to_go - mean, mask).square().sum(1)) / (count - 1).clamp(min=1)
    return mean, variance.sqrt()[:, None]
