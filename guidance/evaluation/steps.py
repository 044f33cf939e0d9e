"""Steps of reasoning: how a head's value moves along right and wrong traces, and where it falls first."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from tqdm import tqdm

from trimtab.guidance.errors import HeadError
from trimtab.guidance.evaluation.replies import batches
from trimtab.guidance.features.source import FeatureSource
from trimtab.guidance.heads.forms import Head, Scalar, along
from trimtab.guidance.heads.manifest import Manifest
from trimtab.guidance.statistics import Estimate, Floats, PerPrompt, resample_prompts
from trimtab.guidance.text.encoding import EncodedReply

Indices = NDArray[np.int64]
Flags = NDArray[np.bool_]
FALL = 0.25  # standard units by which a value falls when it falls
NUM_PLACES = 10  # tenths of a trace
_ENDS = ".!?"


@dataclass(frozen=True, slots=True)
class Trace:
    """A solution with its verdict. ends: numbers of its tokens after which a step ends, ascending; the last
    is all that were drawn."""

    reply: EncodedReply
    is_right: bool
    ends: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class HeadSteps:
    """What one head's value says. Values are in standard units of the policy's own replies.

    accuracy: of pairs of a right and a wrong trace to one question, the share in which the right one's last
    value is higher, a tie counting half. above_length: the same minus that of the better of *the longer* and
    *the shorter*. auc: the share over all pairs of a right and a wrong trace, whatever their questions.
    fallen: share of traces whose value falls by FALL or more from one step's end to the next.
    first_fall: where it first does, as the share of the trace's steps that lie before; of traces that fall.
    by_place: mean value at each tenth of the trace, [NUM_PLACES].
    Of each pair the first is of right traces, the second of wrong ones.
    """

    head: str
    accuracy: Estimate | None
    above_length: Estimate | None
    auc: float | None
    fallen: tuple[Estimate | None, Estimate | None]
    first_fall: tuple[Estimate | None, Estimate | None]
    by_place: tuple[tuple[float, ...], tuple[float, ...]]


@dataclass(frozen=True, slots=True)
class StepsReport:
    num_traces: int
    num_right: int
    num_questions: int
    num_steps: float
    heads: tuple[HeadSteps, ...]


def step_ends(texts: Sequence[str]) -> tuple[int, ...]:
    """texts: of a reply's tokens, which together are the reply. A step ends with its line, or with a
    sentence; a point within a number ends none, nor does a blank line. Returns how many tokens lie before
    each end, the last being all.

    By hand: "One", ".", " Two", "\\n", "3", ".", "5" ends after 2, 4 and 7 tokens.
    """
    text = "".join(texts)
    token_of = [index for index, piece in enumerate(texts) for _ in piece]
    ends, begin = [], 0
    for at, character in enumerate(text):
        follows = text[at + 1 : at + 2]
        is_end = character == "\n" or (character in _ENDS and (not follows or follows.isspace()))
        if is_end and not text[begin : at + 1].isspace():
            ends.append(token_of[at] + 1)
            begin = at + 1
    return tuple(sorted({end for end in ends if end < len(texts)} | {len(texts)})) if texts else ()


def judge_steps(
    traces: Sequence[Trace],
    heads: Sequence[tuple[Head, Manifest]],
    features: FeatureSource,
    *,
    seed: int = 0,
    show_progress: bool = True,
) -> StepsReport:
    """Every head that has a value part, on every trace. Intervals are bootstrapped over questions.

    Raises HeadError where no head has a value.
    """
    measuring = [(head.value, manifest) for head, manifest in heads if head.value is not None]
    if not measuring:
        names = ", ".join(manifest.name for _, manifest in heads) or "none is given"
        raise HeadError(f"no head has a value part, which measures steps ({names})")
    numbers = {ids: n for n, ids in enumerate(dict.fromkeys(trace.reply.prompt_ids for trace in traces))}
    questions = np.array([numbers[trace.reply.prompt_ids] for trace in traces])
    right = np.array([trace.is_right for trace in traces], dtype=bool)
    draws = resample_prompts(len(numbers), seed=seed)
    found = tuple(
        _judge(manifest.name, traces, values, questions, right, draws)
        for manifest, values in _measure(traces, measuring, features, show_progress)
    )
    num_steps = float(np.mean([len(trace.ends) for trace in traces]))
    return StepsReport(len(traces), int(right.sum()), len(numbers), num_steps, found)


def _measure(
    traces: Sequence[Trace],
    measuring: Sequence[tuple[Scalar, Manifest]],
    features: FeatureSource,
    show_progress: bool,
) -> list[tuple[Manifest, list[Floats]]]:
    """Of each head, each trace's values at its steps' ends, in standard units."""
    found: list[list[Floats]] = [[] for _ in measuring]
    bar = tqdm(total=len(traces), desc="steps", unit="trace", disable=not show_progress)
    at = 0
    with bar:
        for batch in batches([trace.reply for trace in traces]):
            for h in features.get(batch):
                for values, (part, manifest) in zip(found, measuring, strict=True):
                    values.append(_values(part, manifest, h, traces[at].ends))
                at += 1
                bar.update()
    return [(manifest, values) for values, (_, manifest) in zip(found, measuring, strict=True)]


@torch.no_grad()
def _values(part: Scalar, manifest: Manifest, h: Tensor, ends: Sequence[int]) -> Floats:
    """V after `end` tokens is V(s_end); s_0 is before the first."""
    device = part.weight.device
    raw = along(part, h.to(device).float(), torch.tensor([len(h)])).cpu().double().numpy()
    values: Floats = (
        raw[[min(end, len(h) - 1) for end in ends]] - manifest.reward_mean
    ) / manifest.reward_std
    return values


def _judge(
    name: str,
    traces: Sequence[Trace],
    values: Sequence[Floats],
    questions: Indices,
    right: Flags,
    draws: Indices,
) -> HeadSteps:
    last = np.array([value[-1] for value in values])
    lengths = np.array([trace.ends[-1] for trace in traces], dtype=float)
    pairs, wins = _pairs(questions, right, last)
    longer = _pairs(questions, right, lengths)[1]
    by_length = longer if not len(longer) or longer.mean() >= 0.5 else 1 - longer
    falls = [_first_fall(value) for value in values]
    fallen = np.array([fall is not None for fall in falls], dtype=float)
    places = np.array([np.nan if fall is None else fall for fall in falls])
    return HeadSteps(
        name,
        _estimate(pairs, wins, draws),
        _estimate(pairs, wins - by_length, draws),
        _auc(right, last),
        _of_both(questions, right, fallen, draws),
        _of_both(questions, right, places, draws),
        (_by_place(values, right), _by_place(values, ~right)),
    )


def _pairs(questions: Indices, right: Flags, scores: Floats) -> tuple[Indices, Floats]:
    """Of every right and wrong trace to a question: the question, and whether the right one scores higher."""
    of, wins = [], []
    for question in np.unique(questions):
        mine = questions == question
        margins = np.subtract.outer(scores[mine & right], scores[mine & ~right]).ravel()
        wins.append(np.where(margins == 0, 0.5, margins > 0))
        of.append(np.full(len(margins), question))
    return np.concatenate(of), np.concatenate(wins).astype(float)


def _estimate(questions: Indices, numbers: Floats, draws: Indices) -> Estimate | None:
    return PerPrompt.of(questions, numbers, draws.shape[1]).estimate(draws)


def _of_both(
    questions: Indices, right: Flags, numbers: Floats, draws: Indices
) -> tuple[Estimate | None, Estimate | None]:
    return (
        _estimate(questions, np.where(right, numbers, np.nan), draws),
        _estimate(questions, np.where(right, np.nan, numbers), draws),
    )


def _auc(right: Flags, scores: Floats) -> float | None:
    wrong = np.sort(scores[~right])
    if not len(wrong) or not right.any():
        return None
    below, upto = (np.searchsorted(wrong, scores[right], side) for side in ("left", "right"))
    return float((below + upto).mean() / (2 * len(wrong)))


def _first_fall(values: Floats) -> float | None:
    """By hand: 1, 1.1, 0.5, 0 falls at its third step of four, so that half of the steps lie before."""
    fallen = np.flatnonzero(np.diff(values) <= -FALL)
    return float((fallen[0] + 1) / len(values)) if len(fallen) else None


def _by_place(values: Sequence[Floats], which: Flags) -> tuple[float, ...]:
    """The value at the last step that has ended by each tenth; before the first has, that of the first."""
    places = np.arange(1, NUM_PLACES + 1) / NUM_PLACES
    rows = [
        value[np.maximum(np.floor(places * len(value) + 1e-9).astype(int) - 1, 0)]
        for value, asked in zip(values, which, strict=True)
        if asked
    ]
    return tuple(np.mean(rows, axis=0).tolist()) if rows else ()
