"""A curve of the frontier: one way to better replies, at several prices in KL."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from trimtab.guidance.evaluation.reply import Reply, Scores
from trimtab.guidance.evaluation.statistics import Estimate, PerPrompt
from trimtab.guidance.evaluation.variety import Variety, measure_variety

CurveKind = Literal["head", "static_bias", "best_of_n", "external"]
UNSEEN = {"is_data": False}  # of fields that a report leaves out


@dataclass(frozen=True, slots=True)
class ScoreSummary:
    """estimate: over the replies that could be scored; None where there is none. unscored: the share that
    could not. win_rate: the share of pairs of a reply with a plain one to the same prompt that it wins, a tie
    counting half; None where nothing was compared."""

    estimate: Estimate | None
    unscored: float = 0.0
    win_rate: Estimate | None = None


@dataclass(frozen=True, slots=True)
class PointSamples:
    """What one point was computed from, so that points can be compared over the same prompts."""

    kl: PerPrompt
    scores: dict[str, PerPrompt]


@dataclass(frozen=True, slots=True)
class CurvePoint:
    """One setting of the knob. kl: nats per reply.

    length: tokens per reply. stopped: share that ended by itself. flip_rate: share of tokens at which the
    policy preferred another than what it was sampled from did. perplexity: of the replies under the policy.
    entropy: nats, of the distribution that was sampled from, averaged over steps (estimated by −log π of the
    drawn tokens: exact in the mean at temperature 1). None where it was not measured.
    """

    knob: float
    kl: Estimate
    scores: dict[str, ScoreSummary]
    num_replies: int
    length: float | None = None
    stopped: float | None = None
    flip_rate: float | None = None
    perplexity: float | None = None
    entropy: float | None = None
    variety: Variety | None = None
    samples: PointSamples | None = field(default=None, repr=False, compare=False, metadata=UNSEEN)


@dataclass(frozen=True, slots=True)
class Curve:
    """knob: what its points differ by. proxy: the score that stands for what the head was trained on.
    is_bound: the KLs are upper bounds."""

    name: str
    kind: CurveKind
    knob: str
    points: tuple[CurvePoint, ...]
    proxy: str | None = None
    is_bound: bool = False

    @property
    def score_names(self) -> tuple[str, ...]:
        return tuple(self.points[0].scores) if self.points else ()


@dataclass(frozen=True, slots=True, eq=False)
class Judging:
    """What all points of a frontier share. draws: of the bootstrap over prompts, i64[R, P].
    variety_replies: replies per prompt that variety is measured on, the same at every point.
    plain: scores of the plain replies by prompt, which win rates compare with."""

    num_prompts: int
    draws: NDArray[np.int64]
    variety_replies: int = 1
    seed: int = 0
    plain: tuple[Sequence[Reply], Scores] | None = None


def judge_point(replies: Sequence[Reply], scores: Scores, knob: float, judging: Judging) -> CurvePoint:
    """One point: replies that were sampled at one setting of the knob, scored and summarised."""
    prompts = [reply.prompt for reply in replies]
    kl = PerPrompt.of(prompts, [reply.kl for reply in replies], judging.num_prompts)
    by_score = {
        name: PerPrompt.of(prompts, _numbers(given), judging.num_prompts) for name, given in scores.items()
    }
    kl_estimate = kl.estimate(judging.draws)
    assert kl_estimate is not None, "a point needs a reply"
    num_tokens = max(sum(len(reply.token_ids) for reply in replies), 1)
    logprob = sum(reply.logprob for reply in replies)
    return CurvePoint(
        knob=knob,
        kl=kl_estimate,
        scores={
            name: _summarise(replies, name, scores[name], per, judging) for name, per in by_score.items()
        },
        num_replies=len(replies),
        length=num_tokens / len(replies),
        stopped=float(np.mean([reply.finish_reason == "stop" for reply in replies])),
        flip_rate=None if math.isnan(logprob) else sum(reply.flips for reply in replies) / num_tokens,
        perplexity=_perplexity(sum(reply.base_logprob for reply in replies), num_tokens),
        entropy=None if math.isnan(logprob) else -logprob / num_tokens,
        variety=measure_variety(replies, per_prompt=judging.variety_replies, seed=judging.seed),
        samples=PointSamples(kl, by_score),
    )


def win_rates(
    prompts: Sequence[int],
    scores: Sequence[float | None],
    plain_prompts: Sequence[int],
    plain_scores: Sequence[float | None],
) -> list[float]:
    """For each reply the share of the plain replies to its prompt that it scores above, a tie counting half;
    nan where there is nothing to compare.

    By hand: 2 against (1, 2, 3, 3) wins 1 + ½ of 4: 0.375.
    """
    plain: dict[int, list[float]] = {}
    for prompt, score in zip(plain_prompts, plain_scores, strict=True):
        if score is not None:
            plain.setdefault(prompt, []).append(score)
    ordered = {prompt: np.sort(np.array(numbers)) for prompt, numbers in plain.items()}
    return [
        math.nan if score is None or prompt not in ordered else _share_below(ordered[prompt], score)
        for prompt, score in zip(prompts, scores, strict=True)
    ]


def _share_below(ordered: NDArray[np.float64], score: float) -> float:
    below, upto = np.searchsorted(ordered, score, "left"), np.searchsorted(ordered, score, "right")
    return float(below + upto) / (2 * len(ordered))


def _summarise(
    replies: Sequence[Reply],
    name: str,
    given: Sequence[float | None],
    per_prompt: PerPrompt,
    judging: Judging,
) -> ScoreSummary:
    unscored = sum(score is None for score in given) / len(given)
    win_rate = None
    if judging.plain is not None:
        plain_replies, plain_scores = judging.plain
        prompts, plain_prompts = [r.prompt for r in replies], [r.prompt for r in plain_replies]
        wins = win_rates(prompts, given, plain_prompts, plain_scores[name])
        win_rate = PerPrompt.of(prompts, wins, judging.num_prompts).estimate(judging.draws)
    return ScoreSummary(per_prompt.estimate(judging.draws), unscored, win_rate)


def _numbers(scores: Sequence[float | None]) -> list[float]:
    return [math.nan if score is None else score for score in scores]


def _perplexity(base_logprob: float, num_tokens: int) -> float | None:
    return None if math.isnan(base_logprob) else math.exp(min(-base_logprob / num_tokens, 700))
