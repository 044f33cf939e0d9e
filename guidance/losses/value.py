"""Losses that train a value: what a prefix of a rollout forecasts, at s_0 … s_{T−1}.

values: [B, T]. returns: what V(s_t) should forecast, [B, T], or [B] where it is one number for the whole
reply. mask: bool[B, T], the reply's positions.
"""

from __future__ import annotations

import torch
from torch import Tensor

from trimtab.guidance.losses.common import Formula, LossResult, keep, masked_mean, per_position
from trimtab.guidance.losses.returns import gae


def monte_carlo(values: Tensor, returns: Tensor, mask: Tensor) -> LossResult:
    """½ Σ_t m_t (V(s_t) − G_t)² (Mudgal 2023, CD-FUDGE, where G_t is the reward of the whole reply).

    By hand: V = (1, 2, 9), m = (1, 1, 0), G = 3: ½ (4 + 1) = 2.5.
    """
    error = keep(values, mask) - per_position(returns, mask)
    return LossResult(0.5 * error.square().sum(1), _metrics(values, error, mask))


def position_weighted(values: Tensor, returns: Tensor, mask: Tensor) -> LossResult:
    """½ Σ_t w_t (V(s_{t−1}) − G_t)² with w_t = 2t/(T(T+1)), t from 1: late prefixes, which know more, count
    more, and a long reply counts as much as a short one.

    By hand: V = (1, 2), G = 3: w = (1/3, 2/3): ½ (4/3 + 2/3) = 1.
    """
    error = keep(values, mask) - per_position(returns, mask)
    length = mask.sum(1)
    weighted = (mask.cumsum(1) * error.square()).sum(1)  # ½ · 2 = 1
    losses = weighted / (length * (length + 1)).clamp(min=1)
    return LossResult(losses, _metrics(values, error, mask))


def td_lambda(
    values: Tensor, rewards: Tensor, mask: Tensor, *, discount: float = 1.0, lam: float = 0.95
) -> LossResult:
    """½ Σ_t m_t (V(s_t) − sg(Â_t + V(s_t)))² with Â of `gae`: TD(λ) (Sutton 1988).

    rewards: [B, T], of y_1 … y_T. V_T = 0. discount: γ.

    By hand: V = (1, 2), r = (0, 3), γ = 1, λ = ½: targets (2½, 3): ½ (2¼ + 1) = 1.625.
    """
    _, target = gae(rewards, values, mask, gamma=discount, lam=lam)
    error = keep(values, mask) - target
    return LossResult(0.5 * error.square().sum(1), _metrics(values, error, mask))


def distributional(logits: Tensor, returns: Tensor, mask: Tensor, *, low: float, high: float) -> LossResult:
    """Σ_t m_t of the cross-entropy against G_t on K bins, centred at `bin_centres`, evenly from low to high.

    The target is two-hot: the two centres around G_t share its weight so that their mean is G_t
    (Schrittwieser 2020). A return outside [low, high] counts as the nearer end; `value/clipped` is their
    share.

    logits: [B, T, K], of the bins.

    By hand: K = 3 over [0, 2], p = (¼, ½, ¼), G = 1¼: target (0, ¾, ¼): −¾ ln ½ − ¼ ln ¼ = 0.8664340.

    Raises:
        ValueError: fewer than 2 bins, or low not below high.
    """
    centres = bin_centres(logits.shape[-1], low, high).to(logits)
    logits, returns = keep(logits, mask[..., None]), per_position(returns, mask)
    place = (returns.clamp(low, high) - low) / (high - low) * (len(centres) - 1)
    lower = place.floor().clamp(max=len(centres) - 2)
    pair = torch.stack([lower, lower + 1], -1).long()
    share = torch.stack([lower + 1 - place, place - lower], -1)  # [B, T, 2]
    losses = -keep((share * logits.log_softmax(-1).gather(-1, pair)).sum(-1), mask).sum(1)
    values = keep(expected(logits, centres), mask)
    clipped = ((returns < low) | (returns > high)).float()
    metrics = {**_metrics(values, values - returns, mask), "value/clipped": masked_mean(clipped, mask)}
    return LossResult(losses, metrics)


def bin_centres(num_bins: int, low: float, high: float) -> Tensor:
    """K centres, evenly from low to high, both included -> [K].

    By hand: 3 over [0, 2]: (0, 1, 2).

    Raises:
        ValueError: fewer than 2 bins, or low not below high.
    """
    if num_bins < 2 or not low < high:
        raise ValueError(f"{num_bins} bins from {low} to {high}: give at least 2, and low below high")
    return torch.linspace(low, high, num_bins, dtype=torch.float64)


def expected(logits: Tensor, centres: Tensor) -> Tensor:
    """Σ p_i z_i. logits: [..., K], of p; centres: [K], z. Returns [...].

    By hand: p = (¼, ¾), z = (0, 2): 1½.
    """
    return (logits.softmax(-1) * centres.to(logits)).sum(-1)


def soft_value(logits: Tensor, centres: Tensor, tau: float) -> Tensor:
    """V_τ = τ log Σ p_i e^{z_i/τ}: what the KL-regularised optimum at temperature τ is worth (Ziebart 2010).

    From the mean (τ → ∞) to the largest possible return (τ → 0). Shapes as in `expected`; tau above 0.

    By hand: p = (¼, ¾), z = (0, ln 3), τ = 1: ln(¼ + 9/4) = ln 2.5 = 0.9162907.
    """
    return tau * (logits.log_softmax(-1) + centres.to(logits) / tau).logsumexp(-1)


def _metrics(values: Tensor, error: Tensor, mask: Tensor) -> dict[str, Tensor]:
    return {
        "value/rmse": masked_mean(error.detach().square(), mask).sqrt(),
        "value/mean": masked_mean(values.detach(), mask),
    }


RETURNS = {"monte_carlo": Formula(monte_carlo, ("discount",))}
WHOLE_REPLIES = {"position_weighted": Formula(position_weighted, ("discount",))}
BOOTSTRAPPED = {"td_lambda": Formula(td_lambda, ("discount", "lam"))}
BINNED = {"distributional": Formula(distributional, ("discount", "bins", "low", "high"))}
