"""Static bias, the constant that a head must beat: one logit bias for all states, b[V], tuned and then
measured like a head. A head that does no better at equal KL has learned words, not states."""

from __future__ import annotations

import itertools
import math
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import fmean

import numpy as np
import torch
from torch import Tensor

from trimtab.guidance.data.items import RolloutItem
from trimtab.guidance.errors import DataError
from trimtab.guidance.evaluation.baselines.cost import ReplyCost, cost_along
from trimtab.guidance.evaluation.replies import batches
from trimtab.guidance.features.source import FeatureSource
from trimtab.guidance.json_file import load_json
from trimtab.guidance.policy import Policy
from trimtab.guidance.statistics import Floats
from trimtab.guidance.text.encoding import EncodedReply

MAX_TOKENS = 256  # of a bias, unless more are asked for: each costs every sampled row a little
MAX_BIAS = 100.0  # of a request's logit_bias
Bias = dict[int, float]
"""Token id -> what its logit gains; a token that is not named gains nothing."""


@dataclass(frozen=True, slots=True)
class Credit:
    """By token id."""

    sums: dict[int, float]
    counts: dict[int, int]


@dataclass(frozen=True, slots=True)
class BiasSetting:
    """discount, shrinkage, max_tokens: of fit_static_bias; None names every token that was seen."""

    discount: float
    shrinkage: float
    max_tokens: int | None


@dataclass(frozen=True, slots=True)
class BiasTrial:
    """A setting as the tuning prompts rank it; the best is the constant that heads must beat.

    num_tokens: that the bias names. first_kl: nats per reply at which it was tried first, as measured.
    slope: its gain over plain there ÷ √KL, in which the gain of a small tilt is linear. scores: of the best
    few at each KL that is compared at, None where it does not reach."""

    setting: BiasSetting
    num_tokens: int
    first_kl: float
    slope: float
    scores: tuple[float | None, ...] = ()
    is_chosen: bool = False

    @property
    def merit(self) -> tuple[int, float, float]:
        """What trials are ranked by: prices that are reached, the mean score at them, the slope."""
        known = [score for score in self.scores if score is not None]
        return len(known), fmean(known) if known else 0.0, self.slope


def fit_static_bias(
    rollouts: Sequence[RolloutItem],
    *,
    discount: float = 0.9,
    shrinkage: float = 20.0,
    max_tokens: int | None = MAX_TOKENS,
) -> Bias:
    """The mean credit of each token over plain rollouts, scaled to an RMS of 1 over their tokens.

    For a small constant tilt the best direction is F⁻¹g, with g the gradient of the expected reward and F the
    Fisher information; with F's diagonal, about the expected count of a token, it is the mean credit. The
    credit of y_t is the discounted sum of the rewards from t on where they come per token, else the reward
    of the reply; less the mean credit among the rollouts of its prompt. shrinkage: as if so many occurrences
    of average credit had been seen besides. The max_tokens that weigh most are kept; None keeps all.

    By hand: two replies to one prompt, (5, 6) with reward 3 and (5, 7) with 1, no shrinkage: credits are 1
    above and below their mean 2, so 5 has 0, 6 has +1, 7 has −1; RMS √(2/4), so 6 has √2.

    Raises:
        DataError: no rollout is scored, or all credits are the same.
    """
    return bias_from(credit_by_token(rollouts, discount), shrinkage=shrinkage, max_tokens=max_tokens)


def credit_by_token(rollouts: Sequence[RolloutItem], discount: float) -> Credit:
    """Of every token that the scored rollouts drew: its credit above the prompt's mean, summed, and how often
    it came."""
    by_prompt: defaultdict[tuple[int, ...], list[tuple[EncodedReply, Floats]]] = defaultdict(list)
    for rollout in (one for one in rollouts if one.is_rewarded):
        by_prompt[rollout.reply.prompt_ids].append((rollout.reply, _credits(rollout, discount)))
    sums: defaultdict[int, float] = defaultdict(float)
    counts: defaultdict[int, int] = defaultdict(int)
    everything = [credit for group in by_prompt.values() for _, credit in group]
    overall = float(np.concatenate(everything).mean()) if everything else 0.0
    for group in by_prompt.values():
        mean = float(np.concatenate([credit for _, credit in group]).mean()) if len(group) > 1 else overall
        for reply, credit in group:
            for token, c in zip(reply.reply_ids, credit - mean, strict=False):
                sums[token] += float(c)
                counts[token] += 1
    return Credit(sums, counts)


def bias_from(credit: Credit, *, shrinkage: float, max_tokens: int | None) -> Bias:
    """As fit_static_bias, of credit that has been counted."""
    sums, counts = credit.sums, credit.counts
    bias = {token: total / (counts[token] + shrinkage) for token, total in sums.items()}
    weight = {token: counts[token] * b * b for token, b in bias.items()}
    rms = math.sqrt(sum(weight.values()) / max(sum(counts.values()), 1))
    if rms < 1e-9:
        raise DataError("no static bias can be fitted: the rollouts are not scored, or all rewards are equal")
    kept = sorted(weight, key=lambda token: -weight[token])[:max_tokens]
    return {token: bias[token] / rms for token in kept if bias[token]}


def load_static_bias(path: Path, vocab_size: int) -> Bias:
    """Reads {token id: bias} as JSON.

    Raises:
        DataError: not that.
    """
    data = load_json(path)
    if not isinstance(data, dict) or not data:
        raise DataError(f"{path}: must hold an object of token ids and biases, such as {{" + '"42": 1.5}')
    for token, bias in data.items():
        if not token.isdecimal() or int(token) >= vocab_size:
            raise DataError(f"{path}: {token!r} is no token id, they are 0…{vocab_size - 1}")
        if not isinstance(bias, int | float) or isinstance(bias, bool) or not math.isfinite(bias):
            raise DataError(f"{path}: the bias of token {token} must be a finite number, got {bias!r}")
    return {int(token): float(bias) for token, bias in data.items()}


def scaled(bias: Bias, strength: float) -> tuple[tuple[int, float], ...]:
    """strength · b as a request's logit_bias, which ends at ±100."""
    return tuple((token, float(np.clip(strength * b, -MAX_BIAS, MAX_BIAS))) for token, b in bias.items())


def as_tilt(bias: Sequence[tuple[int, float]], policy: Policy) -> Tensor:
    """f32[V]"""
    vector = torch.zeros(policy.vocab_size)
    for token, b in bias:
        vector[token] = b
    return vector.to(policy.device)


def measure_static_bias(
    bias: Sequence[tuple[int, float]], features: FeatureSource, replies: Sequence[EncodedReply]
) -> list[ReplyCost]:
    """What π_b ∝ π₀ e^b costs along replies, exactly at each of their drawn tokens."""
    policy = features.policy
    tilt = as_tilt(bias, policy)
    return [
        cost_along(policy, h, reply, lambda _, logits: logits + tilt)
        for batch in batches(replies)
        for h, reply in zip(features.get(batch), batch, strict=True)
    ]


def bias_settings(
    discounts: Sequence[float], shrinkages: Sequence[float], tokens: Sequence[int | str]
) -> Iterator[BiasSetting]:
    """Every combination, each once."""
    for discount, shrinkage, num in dict.fromkeys(itertools.product(discounts, shrinkages, tokens)):
        yield BiasSetting(discount, shrinkage, num if isinstance(num, int) else None)


def rank_trials(trials: Sequence[BiasTrial]) -> list[BiasTrial]:
    """The best first, which is marked as chosen.

    By hand: scores (3, 4) are better than (2, 4.5), and than (9, None), which reaches one price only.
    """
    first, *others = sorted(trials, key=lambda trial: trial.merit, reverse=True)
    return [replace(first, is_chosen=True), *others]


def _credits(rollout: RolloutItem, discount: float) -> Floats:
    num = rollout.reply.num_drawn
    if rollout.token_rewards is None:
        assert rollout.reward is not None
        return np.full(num, rollout.reward)
    credit, ahead = np.zeros(num), 0.0
    for t in reversed(range(num)):
        ahead = rollout.token_rewards[t] + discount * ahead
        credit[t] = ahead
    return credit
