"""Returns of rollouts: targets that their rewards set for each position; nothing here carries gradient.

mask: bool[B, T], a reply's positions, without a gap.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from trimtab.guidance.losses.common import keep, masked_mean


@torch.no_grad()
def reward_to_go(rewards: Tensor, mask: Tensor, gamma: float = 1.0) -> Tensor:
    """G_t = Σ_{k≥t} γ^{k−t} r_k. rewards: [B, T]. Returns [B, T].

    By hand: r = (1, 0, 4), γ = ½: (2, 2, 4).
    """
    return keep(_discounted_sum(keep(rewards, mask), gamma), mask)


@torch.no_grad()
def gae(rewards: Tensor, values: Tensor, mask: Tensor, *, gamma: float, lam: float) -> tuple[Tensor, Tensor]:
    """Generalised advantage estimation (Schulman 2016): Â_t = Σ_{k≥t} (γλ)^{k−t} δ_k with
    δ_t = r_t + γV_{t+1} − V_t.

    rewards, values: [B, T], of y_1 … y_T and at s_0 … s_{T−1}; V_T = 0. Returns Â (not whitened) and Â + V,
    [B, T].

    By hand: r = (0, 3), V = (1, 2), γ = 1, λ = ½: δ = (1, 1), Â = (1½, 1), returns (2½, 3).
    """
    rewards, values = keep(rewards, mask), keep(values, mask)
    delta = rewards + gamma * F.pad(values[:, 1:], (0, 1)) - values
    advantages = keep(_discounted_sum(delta, gamma * lam), mask)
    return advantages, advantages + values


@torch.no_grad()
def whiten(x: Tensor, mask: Tensor) -> Tensor:
    """(x − mean)/√(variance + 1e-8), both over the true positions of the batch. x: [B, T]. Returns [B, T].

    By hand: x = (1, 3, pad): (−1, 1, 0).
    """
    centred = keep(x - masked_mean(x, mask), mask)
    return centred * (masked_mean(centred.square(), mask) + 1e-8).rsqrt()


@torch.no_grad()
def group_baseline(rewards: Tensor, group: Tensor) -> Tensor:
    """The mean reward of the other replies to the same prompt (Ahmadian 2024, RLOO).

    rewards: [B]. group: i64[B], the reply's prompt. Returns [B].

    By hand: r = (1, 2, 6) of one prompt: (4, 3½, 1½).

    Raises:
        ValueError: a prompt with one reply.
    """
    total, count = _group_sum(rewards, group), _group_size(group)
    return (total - rewards) / (count - 1)


@torch.no_grad()
def group_normalise(rewards: Tensor, group: Tensor) -> Tensor:
    """(r − mean)/(std + 1e-4) among the replies to one prompt, std with n − 1 (Shao 2024, GRPO).

    rewards: [B]. group: i64[B], the reply's prompt. Returns [B].

    By hand: r = (0, 2, 4) of one prompt: mean and std 2: (−2, 0, 2)/2.0001 = (−0.99995, 0, 0.99995).

    Raises:
        ValueError: a prompt with one reply.
    """
    count = _group_size(group)
    centred = rewards - _group_sum(rewards, group) / count
    std = (_group_sum(centred.square(), group) / (count - 1)).sqrt()
    return centred / (std + 1e-4)


def _discounted_sum(x: Tensor, discount: float) -> Tensor:
    total, sums = x.new_zeros(len(x)), []
    for column in reversed(x.unbind(1)):
        total = column + discount * total
        sums.append(total)
    return torch.stack(sums[::-1], 1)


def _group_sum(x: Tensor, group: Tensor) -> Tensor:
    return x.new_zeros(int(group.max()) + 1).index_add(0, group, x)[group]


def _group_size(group: Tensor) -> Tensor:
    size = torch.bincount(group)[group]
    if (size < 2).any():
        raise ValueError("a prompt has one reply: sample at least 2, or there is nothing to compare it with")
    return size
