"""Losses that train a reward: one scalar for a finished reply."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from trimtab.guidance.losses.common import Formula, LossResult


def bradley_terry(
    chosen: Tensor, rejected: Tensor, *, margin: float | Tensor = 0.0, centring: float = 0.01
) -> LossResult:
    """−logσ(r_w − r_l − margin) + c (r_w + r_l)² (Bradley and Terry 1952; centring from Eisenstein 2023).

    chosen, rejected: [B], the rewards r_w and r_l. margin: by how much to prefer, one number or [B].
    centring: c, which holds the rewards' free constant near zero.

    By hand: r_w = ln 3, r_l = 0, c = 0.01: ln 4/3 + 0.01 (ln 3)² = 0.2876821 + 0.0120695 = 0.2997516.
    """
    difference = chosen - rejected
    losses = -F.logsigmoid(difference - margin) + centring * (chosen + rejected).square()
    return LossResult(
        losses,
        {
            "reward/chosen": chosen.detach().mean(),
            "reward/rejected": rejected.detach().mean(),
            "reward/margin": difference.detach().mean(),
            "reward/accuracy": (difference > 0).float().mean(),
        },
    )


def ranked(scores: Tensor, group: Tensor, rank: Tensor) -> LossResult:
    """−mean over the pairs i≻j of a prompt of logσ(r_i − r_j) (Ouyang 2022: all pairs of K ranked replies,
    each reply scored once, so that a prompt counts once however many replies it has).

    scores: [N], the rewards of all replies, end to end. group: i64[N], the reply's prompt, 0 … B−1.
    rank: i64[N], lower is better; ties make no pair, and a prompt without a pair costs 0. per_example: [B].

    By hand: r = (ln 3, 0, 0) ranked 1, 2, 3: two pairs at ln 4/3 and one at ln 2: (2·0.2876821 +
    0.6931472)/3 = 0.4228371.
    """
    better, worse = ((group[:, None] == group) & (rank[:, None] < rank)).nonzero(as_tuple=True)
    difference, prompt = scores[better] - scores[worse], group[better]
    zeros = scores.new_zeros(int(group.max()) + 1)
    count = torch.bincount(prompt, minlength=len(zeros)).clamp(min=1)
    losses = zeros.index_add(0, prompt, -F.logsigmoid(difference)) / count
    num_pairs = max(1, len(difference))
    return LossResult(
        losses,
        {
            "reward/margin": difference.detach().sum() / num_pairs,
            "reward/accuracy": (difference > 0).sum() / num_pairs,
        },
    )


def regression(scores: Tensor, target: Tensor) -> LossResult:
    """½ (s − r)². scores: [B], the part's; target: [B], the number that was given.

    By hand: s = (1, 5), r = (3, 4): (2, ½), and an RMSE of √(5/2).
    """
    error = scores - target
    return LossResult(
        0.5 * error.square(),
        {"reward/rmse": error.detach().square().mean().sqrt(), "reward/mean": scores.detach().mean()},
    )


def good_bad(scores: Tensor, label: Tensor) -> LossResult:
    """Binary cross-entropy on scores [B], the logit of P(good | reply). label: bool[B], true is good.

    By hand: s = (ln 3, ln 3), label = (good, bad): −ln ¾ = 0.2876821 and −ln ¼ = 1.3862944.
    """
    losses = F.binary_cross_entropy_with_logits(scores, label.to(scores.dtype), reduction="none")
    return LossResult(
        losses,
        {"reward/accuracy": ((scores > 0) == label).float().mean(), "reward/mean": scores.detach().mean()},
    )


PAIRS = {"bradley_terry": Formula(bradley_terry, ("margin", "centring"))}
RANKINGS = {"ranked": Formula(ranked)}
ROLLOUTS = {"regression": Formula(regression)}
UNPAIRED = {"good_bad": Formula(good_bad)}
