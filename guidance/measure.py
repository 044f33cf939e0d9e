"""The manifest of a trained head: its units and its figures, all from held-out prompts."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Sequence
from itertools import combinations

import torch
from torch import Tensor

from trimtab.guidance.encoding import EncodedReply
from trimtab.guidance.examples import Examples
from trimtab.guidance.features import FeatureSource
from trimtab.guidance.head import Head, Scalar
from trimtab.guidance.held_out import (
    TiltStatistics,
    accuracy,
    better_of_lengths,
    fetch_in_chunks,
    score_ends,
    score_prefixes,
    standard_units,
    tilt_statistics,
    value_per_advantage,
)
from trimtab.guidance.items import PairItem, RankingItem, RolloutItem
from trimtab.guidance.losses.log_ratio import sum_by_reply
from trimtab.guidance.manifest import Manifest, Parts
from trimtab.guidance.objectives.rollouts import returns_of
from trimtab.guidance.plan import Plan
from trimtab.guidance.rollout_rewards import reads_columns
from trimtab.guidance.scale import KL_PER_TOKEN, fit_scale
from trimtab.guidance.train_config import TrainConfig

logger = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class Measured:
    """A trained head with what it is measured on. rollouts: held out, rewarded where that was possible."""

    head: Head
    parts: Parts
    config: TrainConfig
    features: FeatureSource
    examples: Examples
    rollouts: Sequence[RolloutItem]

    @property
    def replies(self) -> list[EncodedReply]:
        return [item.reply for item in self.rollouts]


def measure(measured: Measured, plan: Plan, units: tuple[float, float]) -> Manifest:
    """The manifest. units: reward_mean and reward_std that stand where this run's data tell none.

    Raises:
        DataError: a part that was trained has learned nothing.
    """
    measured = _scaled(measured, plan)
    parts, metrics = measured.parts, _counts(measured.examples)
    units = _units(measured) or units
    metrics |= _pair_metrics(measured) | _label_metrics(measured) | _rollout_metrics(measured)
    if parts.advantage is not None:
        along = _along(measured, measured.replies)
        metrics["flip_rate"] = along.flip.float().mean().item()
        advantage = dataclasses.replace(
            parts.advantage,
            kl_per_token=along.kl.mean().item(),
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
        trained_on=config.trained_on or _describe(measured.examples, config),
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
    """Of the head's reward, or without one of what its value forecasts at the beginning of a reply."""
    if measured.head.reward is not None:
        plain = [item.reply for item in measured.rollouts if not item.departure]
        if not plain:
            logger.warning("no plain rollouts are held out: rewards are reported raw, not in standard units")
            return None
        return standard_units(score_ends(measured.head.reward, measured.features, plain))
    if measured.head.value is not None and _are_rewarded(measured.rollouts):
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
    sides = [[pair.chosen for pair in pairs], [pair.rejected for pair in pairs]]
    lengths = [torch.tensor([reply.num_drawn for reply in side]) for side in sides]
    metrics = {"length_accuracy": better_of_lengths(*lengths)}
    for name, (better, worse) in _scores(measured, *sides).items():
        metrics[f"{name}_accuracy"] = accuracy(better, worse)
    return metrics


def _label_metrics(measured: Measured) -> dict[str, float]:
    """How often a good reply scores higher than a bad one, over all such pairs."""
    items = measured.examples.unpaired.held_out
    sides = [[item.reply for item in items if item.label == label] for label in (True, False)]
    if not all(sides):
        return {}
    lengths = [torch.tensor([reply.num_drawn for reply in side]) for side in sides]
    metrics = {"label_length_accuracy": better_of_lengths(*_crossed(*lengths))}
    for name, scores in _scores(measured, *sides).items():
        metrics[f"label_{name}_accuracy"] = accuracy(*_crossed(*scores))
    return metrics


def _rollout_metrics(measured: Measured) -> dict[str, float]:
    if not _are_rewarded(measured.rollouts):
        return {}
    head, metrics, returns = measured.head, {}, _returns(measured)
    if head.value is not None:
        steps = measured.features.steps(measured.replies)
        at = [s.at[s.at < item.reply.num_drawn] for s, item in zip(steps, measured.rollouts, strict=True)]
        values = [_apply(head.value, s.h[: len(a)]) for s, a in zip(steps, at, strict=True)]
        wanted = torch.cat([g[a] for g, a in zip(returns, at, strict=True)])
        metrics["value_r2"] = _explained(torch.cat(values), wanted)
    if head.reward is not None and reads_columns(measured.examples.rollouts.held_out, measured.config):
        own = torch.tensor([sum(item.rewards()) for item in measured.rollouts])
        metrics["reward_correlation"] = _correlation(
            score_ends(head.reward, measured.features, measured.replies), own
        )
    return metrics


def _scores(
    measured: Measured, better: Sequence[EncodedReply], worse: Sequence[EncodedReply]
) -> dict[str, tuple[Tensor, Tensor]]:
    head, features, scores = measured.head, measured.features, {}
    if head.reward is not None:
        scores["reward"] = (
            score_ends(head.reward, features, better),
            score_ends(head.reward, features, worse),
        )
    if head.advantage is not None:
        scores["advantage"] = (_log_ratios(measured, better), _log_ratios(measured, worse))
    return scores


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


def _are_rewarded(items: Sequence[RolloutItem]) -> bool:
    return all(item.reward is not None or item.token_rewards is not None for item in items)


@torch.no_grad()
def _apply(part: Scalar, h: Tensor) -> Tensor:
    return part(h.to(part.weight.device).float()).cpu()


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


def _correlation(x: Tensor, y: Tensor) -> float:
    x, y = x.double() - x.double().mean(), y.double() - y.double().mean()
    return ((x * y).sum() / (x.square().sum() * y.square().sum()).sqrt().clamp(min=1e-12)).item()


def _describe(examples: Examples, config: TrainConfig) -> str:
    files = {
        "pairs": config.preferences,
        "rankings": config.rankings,
        "unpaired": config.unpaired,
        "rollouts": config.rollouts,
        "prompts": config.prompts,
    }
    told = (
        f"{len(getattr(examples, kind).train)} {kind} of {file.name}" for kind, file in files.items() if file
    )
    return ", ".join(told)
