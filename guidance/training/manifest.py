"""Manifest of a trained head: measures its units and figures on held-out prompts."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Mapping, Sequence
from itertools import combinations
from typing import TypeVar

import torch
from torch import Tensor

from trimtab.guidance.data.items import PairItem, RankingItem, RolloutItem
from trimtab.guidance.features.source import FeatureSource
from trimtab.guidance.heads.forms import Head
from trimtab.guidance.heads.manifest import Manifest, Parts, as_text
from trimtab.guidance.heads.verdict import MIN_JUDGED
from trimtab.guidance.losses.common import sum_by_reply
from trimtab.guidance.text.encoding import EncodedReply
from trimtab.guidance.training.config import PartName, TrainConfig
from trimtab.guidance.training.examples import ITEMS_OF, Examples, files_of
from trimtab.guidance.training.figures import (
    Figures,
    Validation,
    correlation_figures,
    label_figures,
    pair_figures,
)
from trimtab.guidance.training.held_out import (
    TiltStatistics,
    better_of_lengths,
    fetch_in_chunks,
    reads_columns,
    score_ends,
    score_prefix,
    score_prefixes,
    standard_units,
    tilt_statistics,
    value_per_advantage,
)
from trimtab.guidance.training.objectives.rollouts import returns_of, steps_for
from trimtab.guidance.training.plan import Plan
from trimtab.guidance.training.scale import KL_PER_TOKEN, fit_scale

logger = logging.getLogger(__name__)
T = TypeVar("T")
_SIDES = ("chosen", "rejected")


@dataclasses.dataclass(frozen=True)
class Measured:
    """A trained head with what it is measured on. rollouts: held out, rewarded where that was possible.
    stopped: parts whose training some held-out rows ended, which are not to judge them."""

    head: Head
    parts: Parts
    config: TrainConfig
    features: FeatureSource
    examples: Examples
    rollouts: Sequence[RolloutItem]
    stopped: Mapping[PartName, Validation] = dataclasses.field(default_factory=dict)

    def judging(self, part: PartName, items: Sequence[T]) -> list[T]:
        """Held-out items that may judge a part."""
        return self.stopped[part].judging(items) if part in self.stopped else list(items)

    @property
    def is_rewarded(self) -> bool:
        """Whether all rollouts are."""
        return all(item.is_rewarded for item in self.rollouts)

    @property
    def replies(self) -> list[EncodedReply]:
        return [item.reply for item in self.rollouts]


def make_manifest(measured: Measured, plan: Plan, units: tuple[float, float]) -> Manifest:
    """The manifest. units: reward_mean and reward_std that stand where this run's data tell none.

    Raises:
        DataError: a part that was trained has learned nothing.
    """
    measured = _scaled(measured, plan)
    parts, metrics = measured.parts, _counts(measured.examples)
    own_units = _units(measured)
    units = own_units or units
    metrics["unit_rollouts"] = len(measured.rollouts) if own_units else 0
    metrics |= _pair_metrics(measured) | _label_metrics(measured) | _rollout_metrics(measured)
    if parts.advantage is not None:
        along = _along(measured, measured.replies)
        metrics["flip_rate"] = along.flip.float().mean().item()
        if "advantage" in plan and not plan["advantage"].is_tilt:
            metrics |= _advantage_correlation(measured, along)
        advantage = dataclasses.replace(
            parts.advantage,
            kl_per_token=max(along.kl.mean().item(), 0.0),
            value_per_advantage=_value_per_advantage(measured, along, units),
        )
        parts = dataclasses.replace(parts, advantage=advantage)
    identity, config = measured.features.policy.identity, measured.config
    return Manifest(
        name=config.name,
        parts=parts,
        hidden_size=identity.hidden_size,
        vocab_size=identity.vocab_size,
        base_model=identity.base_model,
        reward_mean=units[0],
        reward_std=units[1],
        trained_on=as_text(config.trained_on or _describe(measured.examples, config)),
        metrics=metrics,
    )


def _scaled(measured: Measured, plan: Plan) -> Measured:
    """With the scale of an advantage that this run has trained; says where it is too weak to have one."""
    part, method = measured.head.advantage, plan.get("advantage")
    if part is None or method is None:
        return measured
    assert measured.parts.advantage is not None
    found = fit_scale(part, measured.features, measured.replies, is_tilt=method.is_tilt)
    if found.is_weak:
        logger.warning(
            "%s: the advantage is too weak, no multiple of it spends %g nats a token: its scale stays 1; "
            "train it longer or faster, or on more data",
            measured.config.name,
            KL_PER_TOKEN,
        )
    optimum = 1 / found.scale if method.is_tilt else None
    advantage = dataclasses.replace(measured.parts.advantage, scale=found.scale, optimum=optimum)
    return dataclasses.replace(measured, parts=dataclasses.replace(measured.parts, advantage=advantage))


def _units(measured: Measured) -> tuple[float, float] | None:
    """Of the head's reward, or without one of what its value forecasts at the beginning of a reply. Too few
    replies have no spread to measure in."""
    measures = measured.head.reward is not None or measured.head.value is not None
    if len(measured.rollouts) < MIN_JUDGED:
        if measures:
            logger.warning(
                "%s: %d held-out replies are too few for standard units: rewards and values stay raw (mean "
                "0, deviation 1 in the manifest); give more prompts, or a larger held_out",
                measured.config.name,
                len(measured.rollouts),
            )
        return None
    if measured.head.reward is not None:
        plain = [item.reply for item in measured.rollouts if not item.departure]
        if not plain:
            logger.warning("no plain rollouts are held out: rewards are reported raw, not in standard units")
            return None
        return standard_units(score_ends(measured.head.reward, measured.features, plain))
    if measured.head.value is not None and measured.is_rewarded:
        return standard_units(torch.stack([g[0] for g in _returns(measured)]))
    return None


def _counts(examples: Examples) -> dict[str, float]:
    kinds = {field.name: getattr(examples, field.name) for field in dataclasses.fields(examples)}
    return {
        f"{side}_{kind}": len(getattr(split, side))
        for kind, split in kinds.items()
        for side in ("train", "held_out")
        if split.train
    }


def _pair_metrics(measured: Measured) -> dict[str, float]:
    """How often the better reply of a pair, or of two ranked ones, scores higher."""
    pairs = [*measured.examples.pairs.held_out, *_ranked_pairs(measured.examples.rankings.held_out)]
    if not pairs:
        return {}
    metrics: Figures = {}
    if len(pairs) >= MIN_JUDGED:
        metrics["length_accuracy"] = better_of_lengths(*_lengths(pairs))
    for part in _scoring_parts(measured):
        own = measured.judging(part, pairs)
        better, worse = (_score(measured, part, [getattr(p, side) for p in own]) for side in _SIDES)
        metrics |= pair_figures(part, (better, worse), _lengths(own), own)
    return metrics


def _lengths(pairs: Sequence[PairItem]) -> tuple[Tensor, Tensor]:
    chosen, rejected = (torch.tensor([getattr(p, side).num_drawn for p in pairs]) for side in _SIDES)
    return chosen, rejected


def _label_metrics(measured: Measured) -> dict[str, float]:
    """How often a good reply scores higher than a bad one, over all such pairs."""
    items = measured.examples.unpaired.held_out
    metrics: Figures = {}
    if not items:
        return metrics
    for part in _scoring_parts(measured):
        own = measured.judging(part, items)
        metrics |= label_figures(part, _score(measured, part, [item.reply for item in own]), own)
    if any(name.startswith("label_") for name in metrics):
        sides = [[item.reply for item in items if item.label == label] for label in (True, False)]
        lengths = [torch.tensor([reply.num_drawn for reply in side]) for side in sides]
        metrics["label_length_accuracy"] = better_of_lengths(*_crossed(*lengths))
    return metrics


def _rollout_metrics(measured: Measured) -> dict[str, float]:
    if not measured.is_rewarded:
        return {}
    head, metrics, returns = measured.head, {}, _returns(measured)
    if head.value is not None:
        steps = steps_for(head.value, measured.features, measured.rollouts)
        at = [s.at[s.at < item.reply.num_drawn] for s, item in zip(steps, measured.rollouts, strict=True)]
        values = [score_prefix(head.value, s.h[: len(a)]) for s, a in zip(steps, at, strict=True)]
        wanted = torch.cat([g[a] for g, a in zip(returns, at, strict=True)])
        metrics["value_r2"] = _explained(torch.cat(values), wanted)
    if head.reward is not None and reads_columns(measured.examples.rollouts.held_out, measured.config):
        items = measured.judging("reward", measured.rollouts)
        rewards = torch.tensor([sum(item.rewards()) for item in items])
        scores = _score(measured, "reward", [item.reply for item in items])
        metrics |= correlation_figures("reward", scores.split(1), rewards.split(1), items)
    return metrics


def _advantage_correlation(measured: Measured, along: TiltStatistics) -> Figures:
    """Of Ā(s_{t−1}, y_t) with the return from y_t on."""
    if not measured.is_rewarded:
        return {}
    centred = along.centred.split([item.reply.num_drawn for item in measured.rollouts])
    by_item = dict(zip(measured.rollouts, centred, strict=True))
    items = measured.judging("advantage", measured.rollouts)
    returns = [returns_of(item, measured.config.advantage.discount) for item in items]
    return correlation_figures("advantage", [by_item[item] for item in items], returns, items)


def _scoring_parts(measured: Measured) -> list[PartName]:
    names: tuple[PartName, ...] = ("reward", "advantage")
    return [name for name in names if getattr(measured.head, name) is not None]


def _score(measured: Measured, part: PartName, replies: Sequence[EncodedReply]) -> Tensor:
    """Rewards, or log-ratios of the tilt at strength 1, [len(replies)]."""
    if not replies:
        return torch.zeros(0)
    if part == "advantage":
        return _log_ratios(measured, replies)
    assert measured.head.reward is not None
    return score_ends(measured.head.reward, measured.features, replies)


def _log_ratios(measured: Measured, replies: Sequence[EncodedReply]) -> Tensor:
    along = _along(measured, replies)
    return sum_by_reply(along.log_ratio, torch.tensor([reply.num_drawn for reply in replies]))


def _along(measured: Measured, replies: Sequence[EncodedReply]) -> TiltStatistics:
    """Of the tilt at strength 1."""
    assert measured.head.advantage is not None
    assert measured.parts.advantage is not None
    fetched, scale = fetch_in_chunks(measured.features, replies), measured.parts.advantage.scale
    return tilt_statistics(measured.head.advantage, measured.features.policy, fetched, scale=scale)


def _value_per_advantage(
    measured: Measured, along: TiltStatistics, units: tuple[float, float]
) -> float | None:
    if measured.head.value is None:
        return None
    raw = score_prefixes(measured.head.value, fetch_in_chunks(measured.features, measured.replies))
    return value_per_advantage([(v - units[0]) / units[1] for v in raw], along.centred)


def _returns(measured: Measured) -> list[Tensor]:
    return [returns_of(item, measured.config.value.discount) for item in measured.rollouts]


def _ranked_pairs(rankings: Sequence[RankingItem]) -> list[PairItem]:
    pairs = []
    for item in rankings:
        for (a, rank_a), (b, rank_b) in combinations(zip(item.replies, item.ranks, strict=True), 2):
            if rank_a != rank_b:
                pairs.append(PairItem(a, b) if rank_a < rank_b else PairItem(b, a))
    return pairs


def _crossed(better: Tensor, worse: Tensor) -> tuple[Tensor, Tensor]:
    grid = torch.meshgrid(better, worse, indexing="ij")
    return grid[0], grid[1]


def _explained(values: Tensor, wanted: Tensor) -> float:
    """1 − E(V − G)² / Var G: 0 is the mean, 1 a perfect forecast."""
    return (1 - (values - wanted).square().mean() / wanted.var(correction=0).clamp(min=1e-12)).item()


def _describe(examples: Examples, config: TrainConfig) -> str:
    kinds = {ITEMS_OF[name]: path.name for name, path in files_of(config).items()}
    told = (f"{len(getattr(examples, kind).train)} {kind} of {file}" for kind, file in kinds.items())
    return ", ".join(told)
