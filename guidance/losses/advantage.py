"""Losses that train an advantage by reward, on rollouts of the policy: Q(s, ·) = V(s) + Ā(s, ·).

q: [B, T], V(s_{t−1}) + Ā(s_{t−1}, y_t), of the tokens that came. mask: bool[B, T], the reply's positions.
"""

from __future__ import annotations

from torch import Tensor

from trimtab.guidance.losses.common import Formula, LossResult, keep, masked_mean, per_position, sum_by_reply


def q_monte_carlo(q: Tensor, returns: Tensor, mask: Tensor) -> LossResult:
    """½ Σ_t m_t (Q(s_{t−1}, y_t) − G_t)² (Mudgal 2023, CD-FUDGE, for a head that scores every next token).

    returns: G_t, [B, T], what was earned from y_t on; or [B], one number for the whole reply.

    By hand: V = (1, 1), Ā = (1, −1), G = (3, 1): Q = (2, 0), ½ (1 + 1) = 1.
    """
    return _regress(q, per_position(returns, mask), mask)


def cd_q(q: Tensor, next_value: Tensor, rewards: Tensor, mask: Tensor) -> LossResult:
    """½ Σ_t m_t (Q(s_{t−1}, y_t) − sg(r_t + Σ_z π₀(z|s_t) Q(s_t, z)))² (Mudgal 2023, CD-Q).

    next_value: [B, T], Σ_z π₀(z|s_t) Q(s_t, z), which is V(s_t) since Ā is centred; 0 after the last token.
    rewards: [B, T], of y_1 … y_T. Neither receives gradient.

    By hand: Q = (1, 2), next values (½, 0), r = (0, 3): targets (½, 3): ½ (¼ + 1) = 0.625.
    """
    target = keep(rewards, mask) + keep(next_value, mask)
    return _regress(q, target.detach(), mask)


def distil(advantage: Tensor, target: Tensor, weight: Tensor) -> LossResult:
    """½ Σ_k w_k (Ā_k − (t_k − Σ_j w_j t_j / Σ_j w_j))²: a teacher scores K candidates for each next token,
    the head regresses on the scores, centred under w. Many tokens of a state learn at once, not the
    realised one.

    advantage: [N, K], Ā, centred under π₀ over the whole vocabulary, so that tokens that are no candidates
    are held to 0 on average. target: [N, K], the teacher's scores. weight: [N, K], w ≥ 0, as π₀ of the
    candidates; 0 leaves a candidate out, whatever its score. per_example: [N], one per position.

    By hand: w = (½, ½), t = (3, 1): centred (1, −1); Ā = (2, 0): ½ (½·1 + ½·1) = ½.
    """
    is_candidate = weight > 0
    target = keep(target, is_candidate).detach()
    total = weight.sum(1, keepdim=True).clamp(min=1e-30)
    target = target - (weight * target).sum(1, keepdim=True) / total
    error = keep(advantage, is_candidate) - target
    rms = [(weight * x.detach().square()).sum() / weight.sum() for x in (error, target)]
    return LossResult(
        0.5 * (weight * error.square()).sum(1),
        {"distil/rmse": rms[0].sqrt(), "distil/target_rms": rms[1].sqrt()},
    )


def distil_rollouts(advantage: Tensor, target: Tensor, weight: Tensor, lengths: Tensor) -> LossResult:
    """distil as one loss for each rollout: the mean over its prefixes, of which there are lengths i64[B]."""
    result = distil(advantage, target, weight)
    return LossResult(sum_by_reply(result.per_example, lengths) / lengths, result.metrics)


def _regress(q: Tensor, target: Tensor, mask: Tensor) -> LossResult:
    error = keep(q, mask) - target
    return LossResult(
        0.5 * error.square().sum(1),
        {
            "q/rmse": masked_mean(error.detach().square(), mask).sqrt(),
            "q/mean": masked_mean(q.detach(), mask),
        },
    )


RETURNS = {"monte_carlo": Formula(q_monte_carlo, ("discount",))}
BOOTSTRAPPED = {"cd_q": Formula(cd_q, ("discount",))}
CANDIDATES = {"distil": Formula(distil_rollouts, ("top_k", "num_prefixes"))}
