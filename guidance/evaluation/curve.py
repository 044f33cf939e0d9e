"""Curve of the frontier: measures one way to better replies at several prices in KL, and finds the strengths
that cost them."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from trimtab.guidance.evaluation.replies import MeasuredReply, Scores, positions_at_once
from trimtab.guidance.evaluation.variety import Variety, measure_variety
from trimtab.guidance.features.source import FeatureSource
from trimtab.guidance.heads.forms import Advantage
from trimtab.guidance.policy import Policy
from trimtab.guidance.statistics import Estimate, PerPrompt, with_nan
from trimtab.guidance.text.encoding import EncodedReply

CurveKind = Literal["head", "static_bias", "best_of_n", "system_prompt", "activation_steering", "external"]
UNSEEN = {"is_data": False}  # of fields that a report leaves out
MeanKL = Callable[[float], float]
_HALVINGS = 6
_PROBED_POSITIONS = 1024  # each is a row of logits at every strength that is tried


@dataclass(frozen=True, slots=True)
class ScoreSummary:
    """estimate: over the replies that could be scored; None where there is none. unscored: the share that
    could not. win_rate: the share of replies that score above the plain one of the same prompt and sample, a
    tie counting half; None where nothing was compared."""

    estimate: Estimate | None
    unscored: float = 0.0
    win_rate: Estimate | None = None


@dataclass(frozen=True, slots=True)
class PointSamples:
    """What one point was computed from, so that points can be compared over the same prompts. wins: as
    win_rate; empty where nothing was compared. replies, by_reply: with their scores; none of best-of-n, which
    chooses among plain ones, nor of a mean over seeds."""

    kl: PerPrompt
    scores: dict[str, PerPrompt]
    wins: dict[str, PerPrompt] = field(default_factory=dict)
    replies: tuple[MeasuredReply, ...] = ()
    by_reply: Scores = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class CurvePoint:
    """One setting of the knob. kl: nats per reply.

    length, words: per reply, in tokens and in words. stopped: share that ended by itself. flip_rate: share of
    tokens at which the policy preferred another than what it was sampled from did. perplexity: of the replies
    under the policy. entropy: nats, of the distribution that was sampled from, averaged over steps (estimated
    by −log π of the drawn tokens: exact in the mean at temperature 1). None where it was not measured.
    """

    knob: float
    kl: Estimate
    scores: dict[str, ScoreSummary]
    num_replies: int
    length: float | None = None
    words: float | None = None
    stopped: float | None = None
    flip_rate: float | None = None
    perplexity: float | None = None
    entropy: float | None = None
    cost: float | None = None
    variety: Variety | None = None
    samples: PointSamples | None = field(default=None, repr=False, compare=False, metadata=UNSEEN)


@dataclass(frozen=True, slots=True)
class Curve:
    """knob: what its points differ by. proxy: the score that stands for what the head was trained on.
    is_bound: the KLs are upper bounds. members: the curves of single training seeds where this is their
    mean. between: what the curve is read between where that is more than the points that it shows."""

    name: str
    kind: CurveKind
    knob: str
    points: tuple[CurvePoint, ...]
    proxy: str | None = None
    is_bound: bool = False
    members: tuple[Curve, ...] = ()
    between: tuple[CurvePoint, ...] = field(default=(), repr=False, metadata=UNSEEN)

    @property
    def score_names(self) -> tuple[str, ...]:
        return tuple(self.points[0].scores) if self.points else ()


@dataclass(frozen=True, slots=True, eq=False)
class Judging:
    """What all points of a frontier share. draws: of the bootstrap over prompts, i64[R, P].
    variety_replies: replies per prompt that variety is measured on, the same at every point.
    plain: the plain replies with their scores, which win rates compare with, each with its own."""

    num_prompts: int
    draws: NDArray[np.int64]
    variety_replies: int = 1
    seed: int = 0
    plain: tuple[Sequence[MeasuredReply], Scores] | None = None


def judge_point(
    replies: Sequence[MeasuredReply], scores: Scores, knob: float, judging: Judging
) -> CurvePoint:
    """One point: replies that were sampled at one setting of the knob, scored and summarised."""
    prompts = [reply.prompt for reply in replies]
    kl = PerPrompt.of(prompts, [reply.kl for reply in replies], judging.num_prompts)
    by_score = {
        name: PerPrompt.of(prompts, with_nan(given), judging.num_prompts) for name, given in scores.items()
    }
    wins = _wins(replies, scores, judging)
    kl_estimate = kl.estimate(judging.draws)
    assert kl_estimate is not None, "a point needs a reply"
    num_tokens = max(sum(len(reply.token_ids) for reply in replies), 1)
    logprob = sum(reply.logprob for reply in replies)
    return CurvePoint(
        knob=knob,
        kl=kl_estimate,
        scores={
            name: ScoreSummary(
                per.estimate(judging.draws),
                sum(score is None for score in scores[name]) / len(replies),
                wins[name].estimate(judging.draws) if name in wins else None,
            )
            for name, per in by_score.items()
        },
        num_replies=len(replies),
        length=num_tokens / len(replies),
        words=float(np.mean([len(reply.text.split()) for reply in replies])),
        stopped=float(np.mean([reply.finish_reason == "stop" for reply in replies])),
        flip_rate=None if math.isnan(logprob) else sum(reply.flips for reply in replies) / num_tokens,
        perplexity=_perplexity(sum(reply.base_logprob for reply in replies), num_tokens),
        entropy=None if math.isnan(logprob) else -logprob / num_tokens,
        cost=sum(reply.num_run for reply in replies) / num_tokens or None,
        variety=measure_variety(replies, per_prompt=judging.variety_replies, seed=judging.seed),
        samples=PointSamples(kl, by_score, wins, tuple(replies), scores),
    )


def win_rates(
    replies: Sequence[MeasuredReply],
    scores: Sequence[float | None],
    plain: Sequence[MeasuredReply],
    plain_scores: Sequence[float | None],
) -> list[float]:
    """For each reply 1 where it scores above the plain one of the same prompt and sample, ½ where they tie, 0
    where it loses; nan where one of them has no score, or there is no such plain reply.

    By hand: replies with 2 and 3 against plain ones with 2 and 1, sample by sample: ½ and 1.
    """
    by_place = {(r.prompt, r.sample): score for r, score in zip(plain, plain_scores, strict=True)}
    pairs = [(score, by_place.get((r.prompt, r.sample))) for r, score in zip(replies, scores, strict=True)]
    return [math.nan if a is None or b is None else (a > b) + 0.5 * (a == b) for a, b in pairs]


def _wins(replies: Sequence[MeasuredReply], scores: Scores, judging: Judging) -> dict[str, PerPrompt]:
    if judging.plain is None:
        return {}
    plain, plain_scores = judging.plain
    prompts = [reply.prompt for reply in replies]
    return {
        name: PerPrompt.of(prompts, win_rates(replies, given, plain, plain_scores[name]), judging.num_prompts)
        for name, given in scores.items()
        if name in plain_scores
    }


def _perplexity(base_logprob: float, num_tokens: int) -> float | None:
    return None if math.isnan(base_logprob) else math.exp(min(-base_logprob / num_tokens, 700))


def strengths_for(mean_kl: MeanKL, kls: Sequence[float], limit: float = 1e3) -> tuple[float, ...]:
    """For each of `kls` the strength, at most `limit`, at which mean_kl is about that. Duplicates go.

    mean_kl: nats per reply at a strength; grows with it. Along plain replies it is where to look, not a
    result: the tilt's own replies go elsewhere.
    """
    return tuple(dict.fromkeys(_bisect(mean_kl, kl, limit) for kl in kls))


@dataclass(frozen=True, slots=True, eq=False)
class Probe:
    """Plain replies along which is looked what tilts cost. h: f32[N, d], at their drawn tokens, or at some of
    them, evenly spread. num_replies: that these stand for."""

    policy: Policy
    h: Tensor
    num_replies: float

    @classmethod
    def along(cls, features: FeatureSource, plain: Sequence[EncodedReply]) -> Probe:
        h = torch.cat([h[: r.num_drawn] for h, r in zip(features.get(plain), plain, strict=True)])
        some = h[:: -(-len(h) // _PROBED_POSITIONS)]
        return cls(features.policy, some, len(plain) * len(some) / len(h))

    def head(self, advantages: Sequence[tuple[Advantage, float]]) -> MeanKL:
        """The mean of Σ_t KL(π_β‖π₀) by strength. advantages: (part, weight times scale) pairs, as a request
        would combine them."""
        lm_head = self.policy.lm_head.float()
        return self._mean_kl(
            lambda h: sum((w * part(h.float(), lm_head) for part, w in advantages), torch.zeros(()))
        )

    def constant(self, tilt: Tensor) -> MeanKL:
        """The same of one tilt for all states, f32[V]."""
        return self._mean_kl(lambda _: tilt)

    def _mean_kl(self, tilt_of: Callable[[Tensor], Tensor]) -> MeanKL:
        @torch.no_grad()
        def mean_kl(strength: float) -> float:
            total = 0.0
            for piece in self.h.to(self.policy.device).split(positions_at_once(self.policy)):
                logits = self.policy.logits(piece)
                total += _kl(logits, logits + strength * tilt_of(piece))
            return total / self.num_replies

        return mean_kl


def _kl(base: Tensor, tilted: Tensor) -> float:
    tilted = tilted.log_softmax(-1)
    return float((tilted.exp() * (tilted - base.log_softmax(-1))).sum())


def _bisect(mean_kl: MeanKL, kl: float, limit: float) -> float:
    low, high = 0.0, min(1.0, limit)
    while high < limit and mean_kl(high) < kl:
        low, high = high, min(2 * high, limit)
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        low, high = (middle, high) if mean_kl(middle) < kl else (low, middle)
    return round((low + high) / 2, 4)
