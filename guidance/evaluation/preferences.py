"""Preference accuracy: how well the parts of a head tell the chosen reply from the rejected one, beside
length, and whether they are as often right as they are confident."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from trimtab.guidance.data.items import PairItem, number_prompts
from trimtab.guidance.evaluation.replies import score_with_head
from trimtab.guidance.features.source import FeatureSource
from trimtab.guidance.heads.forms import Head
from trimtab.guidance.heads.manifest import Manifest
from trimtab.guidance.statistics import Estimate, Floats, estimate_by_prompt
from trimtab.guidance.text.encoding import EncodedReply


@dataclass(frozen=True, slots=True)
class Bin:
    """Pairs whose confidence lies in low … high: their mean confidence, and the share that was right."""

    low: float
    high: float
    count: int
    confidence: float
    accuracy: float


@dataclass(frozen=True, slots=True)
class Calibration:
    """error: expected calibration error, 0 … 0.5. bins: those that hold a pair."""

    error: float
    bins: tuple[Bin, ...]


@dataclass(frozen=True, slots=True)
class PartAccuracy:
    """accuracy: the share of pairs whose chosen reply scores higher, a tie counting half. above_length: the
    same minus that of the length baseline, over the same resamples. calibration: of σ(margin); None where
    the part's margin is no log-odds."""

    head: str
    part: str
    accuracy: Estimate
    above_length: Estimate
    calibration: Calibration | None


@dataclass(frozen=True, slots=True)
class LengthBaseline:
    """The better of two rules that read nothing. rule: which one."""

    rule: str
    accuracy: Estimate


@dataclass(frozen=True, slots=True)
class PreferenceReport:
    num_pairs: int
    num_prompts: int
    length: LengthBaseline
    parts: tuple[PartAccuracy, ...]


def judge_preferences(
    pairs: Sequence[PairItem],
    heads: Sequence[tuple[Head, Manifest]],
    features: FeatureSource,
    *,
    seed: int = 0,
    show_progress: bool = True,
) -> PreferenceReport:
    """Every part of every head on every pair. Intervals are bootstrapped over prompts.

    Calibrated are what Bradley-Terry says of rewards, σ(r_w − r_l), and what DPO says of an advantage,
    σ(τ(R_w − R_l)) with the τ of its manifest.
    """
    prompts = number_prompts(pairs).tolist()
    length, length_wins = length_baseline(pairs, prompts, seed)
    parts = []
    for head, manifest in heads:
        for name, margins in _margins(pairs, head, manifest, features, show_progress).items():
            right = wins(margins)
            parts.append(
                PartAccuracy(
                    manifest.name,
                    name,
                    estimate_by_prompt(prompts, right, seed=seed),
                    estimate_by_prompt(prompts, right - length_wins, seed=seed),
                    None if name == "value" else calibrate(margins),
                )
            )
    return PreferenceReport(len(pairs), len(set(prompts)), length, tuple(parts))


def wins(margins: Floats) -> Floats:
    """1 where the margin is above zero, ½ where it is zero, else 0."""
    return np.where(margins == 0, 0.5, margins > 0).astype(np.float64)


def length_baseline(
    pairs: Sequence[PairItem], prompts: Sequence[int], seed: int = 0
) -> tuple[LengthBaseline, Floats]:
    """Pick the longer reply, or pick the shorter: whichever is right more often; and where it is, [N]."""
    longer = wins(np.array([_length(pair.chosen) - _length(pair.rejected) for pair in pairs], dtype=float))
    rule, right = ("longer", longer) if longer.mean() >= 0.5 else ("shorter", 1 - longer)
    return LengthBaseline(rule, estimate_by_prompt(prompts, right, seed=seed)), right


def calibrate(margins: ArrayLike, *, num_bins: int = 10) -> Calibration:
    """margins: [N], score of the chosen reply minus that of the rejected; σ(|margin|) is the confidence that
    the reply with the higher score is the chosen one. Bins of equal width from ½ to 1; the error is
    Σ n_b/N |accuracy_b − confidence_b| (Guo 2017). A margin of zero is right half the time.

    By hand: margins (ln 3, ln 3, −ln 3): confidence ¾ each, right 2 of 3: the error is 1/12.
    """
    margin = np.asarray(margins, dtype=np.float64)
    confidence = 1 / (1 + np.exp(-np.abs(margin)))
    right = np.where(margin == 0, 0.5, margin > 0)
    edges = np.linspace(0.5, 1, num_bins + 1)
    place = np.clip(np.digitize(confidence, edges) - 1, 0, num_bins - 1)
    bins = tuple(
        _bin(edges[b], edges[b + 1], confidence[place == b], right[place == b])
        for b in range(num_bins)
        if (place == b).any()
    )
    error = sum(b.count * abs(b.accuracy - b.confidence) for b in bins) / len(margin)
    return Calibration(error, bins)


def _bin(low: float, high: float, confidence: Floats, right: Floats) -> Bin:
    return Bin(float(low), float(high), len(right), float(confidence.mean()), float(right.mean()))


def _length(reply: EncodedReply) -> int:
    return len(reply.reply_ids)


def _margins(
    pairs: Sequence[PairItem],
    head: Head,
    manifest: Manifest,
    features: FeatureSource,
    show_progress: bool,
) -> dict[str, Floats]:
    replies = [reply for pair in pairs for reply in pair.replies]
    scores = score_with_head(head, manifest, features, replies, show_progress=show_progress)
    part = manifest.parts.advantage
    log_odds = None if scores.log_ratio is None or part is None else part.tau * scores.log_ratio
    by_part = {"reward": scores.reward, "value": scores.value, "advantage": log_odds}
    return {name: s[::2] - s[1::2] for name, s in by_part.items() if s is not None}
