"""Best-of-n from one set of samples, plain or steered, at every n."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache
from math import comb

import numpy as np

from trimtab.guidance.evaluation.curve import Curve, CurvePoint, Judging, PointSamples, ScoreSummary
from trimtab.guidance.evaluation.replies import MeasuredReply, Scores
from trimtab.guidance.statistics import Estimate, Floats, PerPrompt, with_nan


def best_of_n(
    replies: Sequence[MeasuredReply], scores: Scores, by: str, counts: Sequence[int], judging: Judging
) -> Curve:
    """The curve of best-of-n by the score `by`, read in all scores. A prompt with fewer than n scored replies
    is left out at that n. `counts` are its points; between them it is read at every n up to the largest.

    KL is the bound log n − (n−1)/n from what the replies were drawn from; where that is not the policy, there
    is added what it is away from the policy along the best, the mean of their log π/π₀. win_rate: against
    another plain reply, read in each score; with the score it was chosen by it is n/(n+1) where there are no
    ties.
    """
    every = tuple(range(1, max(counts) + 1))
    columns = _columns(replies, scores)
    table = {name: _by_prompt(replies, columns, name, by, every, judging.num_prompts) for name in scores}
    points = [_point(replies, columns, by, n, table, judging, with_wins=n in counts) for n in every]
    kept = [point for point in points if point.num_replies]
    shown = tuple(point for point in kept if point.knob in counts)
    return Curve(f"best-of-n by {by}", "best_of_n", "n", shown, proxy=by, is_bound=True, between=tuple(kept))


def kl_bound(n: int) -> float:
    """log n − (n−1)/n nats: an upper bound on the KL of best-of-n from the policy (Beirami 2024).

    By hand: n = 1 gives 0, n = 4 gives 1.3863 − 0.75 = 0.6363.
    """
    return math.log(n) - (n - 1) / n


def expected_best(by: Floats, read: Floats, counts: tuple[int, ...]) -> Floats:
    """The mean of `read` at the reply with the highest `by`, over all subsets of n of the N replies, for each
    n of counts; nan for one above N.

    In ascending order of `by`, the i-th (from 1) is the best of C(i−1, n−1) of the C(N, n) subsets; replies
    that tie share their places. by: [N]. read: [N, C]. Returns [len(counts), C].

    By hand: by = read = (1, 2, 4), n = 2: the subsets' best are 2, 4, 4, the mean 10/3.
    """
    return _place_weights(len(by), counts) @ _share_ties(by, read)


def expected_wins(by: Floats, read: Floats, n: int) -> float:
    """The probability that the best of n by `by` beats in `read` one of the other replies, a tie counting
    half: over all subsets of n and all replies outside of them. by, read: [N], n < N.

    By hand: by = read = (1, 2, 4), n = 2: best 2 loses to 4, best 4 beats 2, best 4 beats 1: 2/3 = n/(n+1).
    """
    num = len(by)
    ordered = read[np.argsort(by, kind="stable")]
    beats = (ordered[:, None] > ordered) + 0.5 * (ordered[:, None] == ordered)  # [winner, opponent]
    # The i-th wins C(i−1, n−1) subsets; an opponent below it must be left out, one above never is in.
    above = np.array([comb(i, n - 1) for i in range(num)], dtype=np.float64)
    below = np.array([comb(i - 1, n - 1) if i else 0 for i in range(num)], dtype=np.float64)
    weights = np.triu(np.repeat(above[:, None], num, 1), 1) + np.tril(np.repeat(below[:, None], num, 1), -1)
    return float((weights * beats).sum() / (comb(num, n) * (num - n)))


@lru_cache(maxsize=64)
def _place_weights(num: int, counts: tuple[int, ...]) -> Floats:
    """Of each place among `num` in ascending order, for each n: the share of the subsets of n whose best is
    there, f64[len(counts), num]; nan for an n above num."""
    rows = [
        [comb(i, n - 1) / comb(num, n) for i in range(num)] if n <= num else [math.nan] * num for n in counts
    ]
    return np.array(rows, dtype=np.float64)


def _share_ties(by: Floats, read: Floats) -> Floats:
    """`read` [N, C] in the ascending order of `by`, the mean of those that tie in the place of each."""
    order = np.argsort(by, kind="stable")
    _, tie = np.unique(by[order], return_inverse=True)
    sums = np.zeros((tie.max() + 1, read.shape[1]))
    np.add.at(sums, tie, read[order])
    return np.asarray((sums / np.bincount(tie)[:, None])[tie])


_ASIDE = ("length", "stopped", "base_logprob", "log_ratio")
"""What is read of the best replies beside their scores."""
_Columns = dict[str, Floats]


def _columns(replies: Sequence[MeasuredReply], scores: Scores) -> tuple[_Columns, _Columns]:
    """Scores by name, and what is read beside them, each [N]."""
    read = {name: with_nan(given) for name, given in scores.items()}
    return read, {
        "length": np.array([float(len(reply.token_ids)) for reply in replies]),
        "stopped": np.array([float(reply.finish_reason == "stop") for reply in replies]),
        "base_logprob": np.array([reply.base_logprob for reply in replies]),
        "log_ratio": np.array([reply.logprob - reply.base_logprob if reply.kl else 0.0 for reply in replies]),
    }


def _by_prompt(
    replies: Sequence[MeasuredReply],
    columns: tuple[_Columns, _Columns],
    name: str,
    by: str,
    counts: tuple[int, ...],
    num_prompts: int,
) -> Floats:
    """The score `name`, and _ASIDE, of the best by `by`, f64[n, prompt, 5]; nan where there are too few."""
    scores, aside = columns
    prompts = np.array([reply.prompt for reply in replies])
    read = np.stack([scores[name], *(aside[key] for key in _ASIDE)], 1)
    found = np.full((len(counts), num_prompts, read.shape[1]), np.nan)
    usable = ~np.isnan(scores[by]) & ~np.isnan(scores[name])
    for prompt in range(num_prompts):
        here = usable & (prompts == prompt)
        if here.any():
            found[:, prompt] = expected_best(scores[by][here], read[here], counts)
    return found


def _point(
    replies: Sequence[MeasuredReply],
    columns: tuple[_Columns, _Columns],
    by: str,
    n: int,
    table: dict[str, Floats],
    judging: Judging,
    *,
    with_wins: bool,
) -> CurvePoint:
    every = np.arange(judging.num_prompts)

    def per_prompt(numbers: Floats) -> PerPrompt:
        return PerPrompt.of(every, numbers, judging.num_prompts)

    means = {name: per_prompt(found[n - 1, :, 0]) for name, found in table.items()}
    wins = {name: per_prompt(_wins(replies, columns[0], by, name, n, judging)) for name in table if with_wins}
    length, stopped, base_logprob = (per_prompt(table[by][n - 1, :, i]).mean for i in (1, 2, 3))
    kl = per_prompt(kl_bound(n) + table[by][n - 1, :, 4])
    num_run = float(np.mean([reply.num_run for reply in replies]))
    return CurvePoint(
        knob=n,
        kl=kl.estimate(judging.draws) or Estimate(math.nan, math.nan, math.nan),
        scores={
            name: ScoreSummary(
                mean.estimate(judging.draws),
                win_rate=wins[name].estimate(judging.draws) if with_wins else None,
            )
            for name, mean in means.items()
        },
        num_replies=int(means[by].counts.sum()) * n,
        length=_known(length),
        stopped=_known(stopped),
        perplexity=_known(math.exp(-base_logprob / length) if length else math.nan),
        cost=_known(n * num_run / length if length and num_run else math.nan),
        samples=PointSamples(kl, means),
    )


def _wins(
    replies: Sequence[MeasuredReply], scores: _Columns, by: str, name: str, n: int, judging: Judging
) -> Floats:
    prompts = np.array([reply.prompt for reply in replies])
    usable = ~np.isnan(scores[by]) & ~np.isnan(scores[name])
    wins = np.full(judging.num_prompts, np.nan)
    for prompt in range(judging.num_prompts):
        here = usable & (prompts == prompt)
        if here.sum() > n:
            wins[prompt] = expected_wins(scores[by][here], scores[name][here], n)
    return wins


def _known(number: float) -> float | None:
    return None if math.isnan(number) else number
