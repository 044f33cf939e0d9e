"""Best-of-n: what sampling n replies and keeping the best would give, from one set of plain samples."""

from __future__ import annotations

import math
from collections.abc import Sequence
from math import comb

import numpy as np

from trimtab.guidance.evaluation.curve import Curve, CurvePoint, Judging, PointSamples, ScoreSummary
from trimtab.guidance.evaluation.reply import Reply, Scores
from trimtab.guidance.evaluation.statistics import Estimate, Floats, PerPrompt


def best_of_n(
    replies: Sequence[Reply], scores: Scores, by: str, counts: Sequence[int], judging: Judging
) -> Curve:
    """The curve of best-of-n by the score `by`, read in all scores. A prompt with fewer than n scored replies
    is left out at that n.

    KL is the bound log n − (n−1)/n. win_rate: against another plain reply, read in each score; with the score
    it was chosen by it is n/(n+1) where there are no ties.
    """
    points = tuple(_point(replies, scores, by, n, judging) for n in counts)
    kept = tuple(point for point in points if point.num_replies)
    return Curve(f"best-of-n by {by}", "best_of_n", "n", kept, proxy=by, is_bound=True)


def kl_bound(n: int) -> float:
    """log n − (n−1)/n nats: an upper bound on the KL of best-of-n from the policy (Beirami 2024).

    By hand: n = 1 gives 0, n = 4 gives 1.3863 − 0.75 = 0.6363.
    """
    return math.log(n) - (n - 1) / n


def expected_best(by: Floats, read: Floats, n: int) -> float:
    """The mean of `read` at the reply with the highest `by`, over all subsets of n of the N replies.

    In ascending order of `by`, the i-th (from 1) is the best of C(i−1, n−1) of the C(N, n) subsets; replies
    that tie share their places. by, read: [N], n ≤ N.

    By hand: by = read = (1, 2, 4), n = 2: the subsets' best are 2, 4, 4, the mean 10/3.
    """
    return float(_place_weights(len(by), n) @ _share_ties(by, read)[1])


def expected_wins(by: Floats, read: Floats, n: int) -> float:
    """The probability that the best of n by `by` beats in `read` one of the other replies, a tie counting
    half: over all subsets of n and all replies outside of them. by, read: [N], n < N.

    By hand: by = read = (1, 2, 4), n = 2: best 2 loses to 4, best 4 beats 2, best 4 beats 1: 2/3 = n/(n+1).
    """
    num = len(by)
    order, _ = _share_ties(by, read)
    ordered = read[order]
    beats = (ordered[:, None] > ordered) + 0.5 * (ordered[:, None] == ordered)  # [winner, opponent]
    # The i-th wins C(i−1, n−1) subsets; an opponent below it must be left out, one above never is in.
    above = np.array([comb(i, n - 1) for i in range(num)], dtype=np.float64)
    below = np.array([comb(i - 1, n - 1) if i else 0 for i in range(num)], dtype=np.float64)
    weights = np.triu(np.repeat(above[:, None], num, 1), 1) + np.tril(np.repeat(below[:, None], num, 1), -1)
    return float((weights * beats).sum() / (comb(num, n) * (num - n)))


def _place_weights(num: int, n: int) -> Floats:
    return np.array([comb(i, n - 1) for i in range(num)], dtype=np.float64) / comb(num, n)


def _share_ties(by: Floats, read: Floats) -> tuple[np.ndarray, Floats]:
    """The ascending order of `by`, and `read` in it with the mean of those that tie in the place of each."""
    order = np.argsort(by, kind="stable")
    _, tie = np.unique(by[order], return_inverse=True)
    means = np.bincount(tie, weights=read[order]) / np.bincount(tie)
    return order, means[tie]


def _point(replies: Sequence[Reply], scores: Scores, by: str, n: int, judging: Judging) -> CurvePoint:
    prompts = np.array([reply.prompt for reply in replies])
    table = {name: np.array([math.nan if s is None else s for s in given]) for name, given in scores.items()}
    bound = kl_bound(n)
    means = {name: np.full(judging.num_prompts, np.nan) for name in table}
    wins = {name: np.full(judging.num_prompts, np.nan) for name in table}
    num_replies = 0
    for prompt in range(judging.num_prompts):
        here = (prompts == prompt) & ~np.isnan(table[by])
        for name, numbers in table.items():
            usable = here & ~np.isnan(numbers)
            chooser, read = table[by][usable], numbers[usable]
            if len(read) >= n:
                num_replies += name == by
                means[name][prompt] = expected_best(chooser, read, n)
            if len(read) > n:
                wins[name][prompt] = expected_wins(chooser, read, n)
    every = np.arange(judging.num_prompts)
    per_prompt = {name: PerPrompt.of(every, numbers, judging.num_prompts) for name, numbers in means.items()}
    return CurvePoint(
        knob=n,
        kl=Estimate(bound, bound, bound),
        scores={
            name: ScoreSummary(
                per_prompt[name].estimate(judging.draws),
                win_rate=PerPrompt.of(every, wins[name], judging.num_prompts).estimate(judging.draws),
            )
            for name in table
        },
        num_replies=num_replies * n,
        samples=PointSamples(PerPrompt.of(every, np.full(len(every), bound), len(every)), per_prompt),
    )
