"""Baselines: best-of-n from one set of plain samples, and curves that were measured elsewhere."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from math import comb
from pathlib import Path
from typing import Any

import numpy as np

from trimtab.guidance.errors import DataError
from trimtab.guidance.evaluation.curve import Curve, CurvePoint, Judging, PointSamples, ScoreSummary
from trimtab.guidance.evaluation.replies import MeasuredReply, Scores
from trimtab.guidance.statistics import Estimate, Floats, PerPrompt, with_nan


def best_of_n(
    replies: Sequence[MeasuredReply], scores: Scores, by: str, counts: Sequence[int], judging: Judging
) -> Curve:
    """The curve of best-of-n by the score `by`, read in all scores. A prompt with fewer than n scored replies
    is left out at that n. `counts` are its points; between them it is read at every n up to the largest.

    KL is the bound log n − (n−1)/n. win_rate: against another plain reply, read in each score; with the score
    it was chosen by it is n/(n+1) where there are no ties.
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


_ASIDE = ("length", "stopped", "base_logprob")  # what is read of the best replies beside their scores
_Columns = dict[str, Floats]


def _columns(replies: Sequence[MeasuredReply], scores: Scores) -> tuple[_Columns, _Columns]:
    """Scores by name, and what is read beside them, each [N]."""
    read = {name: with_nan(given) for name, given in scores.items()}
    return read, {
        "length": np.array([float(len(reply.token_ids)) for reply in replies]),
        "stopped": np.array([float(reply.finish_reason == "stop") for reply in replies]),
        "base_logprob": np.array([reply.base_logprob for reply in replies]),
    }


def _by_prompt(
    replies: Sequence[MeasuredReply],
    columns: tuple[_Columns, _Columns],
    name: str,
    by: str,
    counts: tuple[int, ...],
    num_prompts: int,
) -> Floats:
    """The score `name`, and _ASIDE, of the best by `by`, f64[n, prompt, 4]; nan where there are too few."""
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
    bound, every = kl_bound(n), np.arange(judging.num_prompts)

    def per_prompt(numbers: Floats) -> PerPrompt:
        return PerPrompt.of(every, numbers, judging.num_prompts)

    means = {name: per_prompt(found[n - 1, :, 0]) for name, found in table.items()}
    wins = {name: per_prompt(_wins(replies, columns[0], by, name, n, judging)) for name in table if with_wins}
    length, stopped, base_logprob = (per_prompt(table[by][n - 1, :, i]).mean for i in (1, 2, 3))
    return CurvePoint(
        knob=n,
        kl=Estimate(bound, bound, bound),
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
        samples=PointSamples(per_prompt(np.full(len(every), bound)), means),
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


@dataclass(frozen=True, slots=True)
class External:
    """Either points that are judged already, or replies to the frontier's prompts that still are to be."""

    name: str
    points: tuple[CurvePoint, ...] = ()
    replies: tuple[tuple[float, tuple[MeasuredReply, ...]], ...] = ()

    def curve(self, points: Sequence[CurvePoint]) -> Curve:
        return Curve(self.name, "external", "scale", tuple(points))


def load_external(path: Path, numbers: Mapping[int, int]) -> External:
    """Reads {label, points: [...]} as JSON. A point is one of two:

    {scale, kl, scores: {name: number, or {mean, low, high}}}: judged elsewhere; kl a number or {mean, low,
    high} too. {scale, prompt_ids, texts, kls, is_cut?, samples?, token_ids?, base_logprobs?}: replies to rows
    of the prompt file, as `trimtab train --lora` writes them; those to prompts that are not judged here are
    left out.

    numbers: rows of the prompt file that are judged here -> their number here.

    Raises:
        DataError: neither; names the file, the point and the key.
    """
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DataError(f"{path}: cannot be read as JSON ({error})") from error
    points = data.get("points") if isinstance(data, dict) else None
    if not isinstance(points, list) or not points or not all(isinstance(p, dict) for p in points):
        raise DataError(f'{path}: must hold {{"label": …, "points": [{{…}}, …]}}')
    name = str(data.get("label", path.stem))
    if all("texts" in point for point in points):
        replies = tuple(
            (_knob(p, i), tuple(_replies(p, f"{path}: point {i}", numbers))) for i, p in enumerate(points)
        )
        if not all(given for _, given in replies):
            raise DataError(f"{path}: a point has no reply to any of the {len(numbers)} prompts judged here")
        return External(name, replies=replies)
    return External(name, tuple(_point_of_file(p, i, f"{path}: point {i}") for i, p in enumerate(points)))


def _knob(point: dict[str, Any], index: int) -> float:
    knob = point.get("scale", point.get("knob", index + 1))
    return float(knob) if isinstance(knob, int | float) else float(index + 1)


def _replies(point: dict[str, Any], where: str, numbers: Mapping[int, int]) -> list[MeasuredReply]:
    columns = {key: _list(point, key, where) for key in ("prompt_ids", "texts", "kls")}
    prompts = columns["prompt_ids"]
    columns |= {
        "is_cut": point.get("is_cut") or [False] * len(prompts),
        "samples": point.get("samples") or _counted(prompts),
        "token_ids": point.get("token_ids") or [()] * len(prompts),
        "base_logprobs": point.get("base_logprobs") or [math.nan] * len(prompts),
    }
    if len({len(column) for column in columns.values()}) != 1:
        raise DataError(f"{where}: {', '.join(columns)} must be of one length")
    return [
        MeasuredReply(
            numbers[prompt],
            str(text),
            tuple(token_ids),
            _finite(kl, "kls", where),
            "length" if is_cut else "stop",
            base_logprob=base_logprob,
            sample=sample,
        )
        for prompt, text, kl, is_cut, sample, token_ids, base_logprob in zip(*columns.values(), strict=True)
        if prompt in numbers
    ]


def _counted(prompts: Sequence[Any]) -> list[int]:
    """The number of each reply among those of its prompt."""
    seen: Counter[Any] = Counter()
    counted = []
    for prompt in prompts:
        counted.append(seen[prompt])
        seen[prompt] += 1
    return counted


def _list(point: dict[str, Any], key: str, where: str) -> list[Any]:
    value = point.get(key)
    if not isinstance(value, list):
        raise DataError(f"{where}: {key} must be a list")
    return value


def _point_of_file(point: dict[str, Any], index: int, where: str) -> CurvePoint:
    scores = point.get("scores")
    if "kl" not in point or not isinstance(scores, dict) or not scores:
        raise DataError(f"{where}: needs kl and scores {{name: number}}, or texts, kls and prompt_ids")
    return CurvePoint(
        _knob(point, index),
        _estimate(point["kl"], "kl", where),
        {str(name): ScoreSummary(_estimate(value, str(name), where)) for name, value in scores.items()},
        int(point.get("num_replies", 0)),
    )


def _estimate(value: Any, key: str, where: str) -> Estimate:
    if isinstance(value, dict):
        mean = _finite(value.get("mean"), key, where)
        ends = (_finite(value.get(end, mean), key, where) for end in ("low", "high"))
        return Estimate(mean, *ends)
    number = _finite(value, key, where)
    return Estimate(number, number, number)


def _finite(value: Any, key: str, where: str) -> float:
    if not isinstance(value, int | float) or isinstance(value, bool) or not math.isfinite(value):
        raise DataError(f"{where}: {key} must be a finite number, got {value!r}")
    return float(value)
