"""Trains a head: reward, then advantage, then value, each on cached features of the frozen policy."""

from __future__ import annotations

import dataclasses
import json
import logging
from collections.abc import Sequence
from functools import partial

import torch
import yaml

from trimtab.guidance.config_file import to_yaml
from trimtab.guidance.encoding import EncodedReply
from trimtab.guidance.errors import DataError
from trimtab.guidance.examples import EncodedPair, Examples, load_examples
from trimtab.guidance.features import FeatureCache
from trimtab.guidance.head import Head
from trimtab.guidance.held_out import (
    accuracy,
    explained_variance,
    length_accuracy,
    score_prefixes,
    score_replies,
    tilt_statistics,
    value_per_advantage,
)
from trimtab.guidance.losses import LOSSES
from trimtab.guidance.losses.log_ratio import sum_by_reply
from trimtab.guidance.manifest import Manifest, Parts
from trimtab.guidance.objectives import (
    AdvantageObjective,
    Pair,
    ReplyFeatures,
    RewardObjective,
    ValueObjective,
)
from trimtab.guidance.part_trainer import train_part
from trimtab.guidance.policy import Policy, load_policy
from trimtab.guidance.store import check_destination, save_head
from trimtab.guidance.train_config import TrainConfig

logger = logging.getLogger(__name__)
CONFIG_FILE = "train_config.yaml"


@dataclasses.dataclass(frozen=True, slots=True)
class TrainingSet:
    """The examples with their features."""

    train_pairs: list[Pair]
    held_out_pairs: list[Pair]
    train_rollouts: list[ReplyFeatures]
    held_out_rollouts: list[ReplyFeatures]


def train_head(
    config: TrainConfig, *, policy: Policy | None = None, cache: FeatureCache | None = None
) -> Manifest:
    """Trains all parts of a head, measures them on held-out prompts, and writes the head's folder.

    policy, cache: hand these over to train several heads on one policy; the cache must be the policy's.

    Raises:
        DataError, PolicyError, HeadError: one line that names the thing and the fix.
    """
    check_destination(config.head_folder)
    _write_config(config)
    if policy is None:
        policy = cache.policy if cache is not None else load_policy(config.model, device=config.device)
    if cache is None:
        cache = FeatureCache(policy, show_progress=config.show_progress)
    data = _compute_features(load_examples(config, policy), cache)
    parts = Parts(config.advantage.part(), config.value.part(), config.reward.part())
    torch.manual_seed(config.seed)
    head = Head(parts, policy.identity.hidden_size, policy.identity.vocab_size).to(policy.device)
    _train_reward(head, data, config, policy)
    _train_advantage(head, data, config, policy)
    _train_value(head, data, config, policy)
    manifest = _measure(head, data, config, policy)
    save_head(config.head_folder, head, manifest)
    logger.info("%s: %s", config.head_folder, json.dumps(dict(manifest.metrics)))
    return manifest


def _write_config(config: TrainConfig) -> None:
    """Writes the resolved configuration; a run that resumes must have been configured alike."""
    path = config.run_folder / CONFIG_FILE
    if config.resume and path.is_file():
        before, now = yaml.safe_load(path.read_text(encoding="utf-8")), yaml.safe_load(to_yaml(config))
        free = {"resume", "show_progress", "head_folder"}
        changed = sorted(key for key in now if key not in free and before.get(key) != now[key])
        if changed:
            raise DataError(f"{path}: was run with another {changed[0]}: restore it, or start without resume")
    config.run_folder.mkdir(parents=True, exist_ok=True)
    path.write_text(to_yaml(config), encoding="utf-8")


def _compute_features(examples: Examples, cache: FeatureCache) -> TrainingSet:
    def features(replies: Sequence[EncodedReply]) -> list[ReplyFeatures]:
        tokens = [torch.tensor(reply.reply_ids) for reply in replies]
        return [ReplyFeatures(h, t) for h, t in zip(cache.get(replies), tokens, strict=True)]

    def paired(pairs: Sequence[EncodedPair]) -> list[Pair]:
        both = features([reply for pair in pairs for reply in pair])
        return list(zip(both[::2], both[1::2], strict=True))

    return TrainingSet(
        paired(examples.train_pairs),
        paired(examples.held_out_pairs),
        features(examples.train_rollouts),
        features(examples.held_out_rollouts),
    )


def _train_reward(head: Head, data: TrainingSet, config: TrainConfig, policy: Policy) -> None:
    assert head.reward is not None
    logger.info("%s: reward by %s", config.name, config.reward.loss)
    train_part(
        RewardObjective(head.reward),
        partial(
            LOSSES["reward"][config.reward.loss], margin=config.reward.margin, centring=config.reward.centring
        ),
        data.train_pairs,
        RewardObjective.collate,
        folder=config.run_folder / "reward",
        optimiser=config.reward.optimiser,
        config=config,
        device=policy.device,
    )


def _train_advantage(head: Head, data: TrainingSet, config: TrainConfig, policy: Policy) -> None:
    assert head.advantage is not None
    logger.info("%s: advantage by %s", config.name, config.advantage.loss)
    train_part(
        AdvantageObjective(head.advantage, policy),
        partial(
            LOSSES["advantage"][config.advantage.loss],
            tau=config.advantage.tau,
            flipped=config.advantage.flipped,
        ),
        data.train_pairs,
        AdvantageObjective.collate,
        folder=config.run_folder / "advantage",
        optimiser=config.advantage.optimiser,
        config=config,
        device=policy.device,
    )


def _train_value(head: Head, data: TrainingSet, config: TrainConfig, policy: Policy) -> None:
    assert head.reward is not None
    assert head.value is not None
    logger.info("%s: value by %s", config.name, config.value.loss)
    rewards = score_replies(head.reward, data.train_rollouts).tolist()
    train_part(
        ValueObjective(head.value),
        LOSSES["value"][config.value.loss],
        list(zip(data.train_rollouts, rewards, strict=True)),
        ValueObjective.collate,
        folder=config.run_folder / "value",
        optimiser=config.value.optimiser,
        config=config,
        device=policy.device,
    )


def _measure(head: Head, data: TrainingSet, config: TrainConfig, policy: Policy) -> Manifest:
    """The manifest of a trained head: its units and its figures, all from held-out prompts."""
    assert head.advantage is not None
    assert head.value is not None
    assert head.reward is not None
    rewards = score_replies(head.reward, data.held_out_rollouts)
    mean, std = rewards.mean().item(), rewards.std(correction=0).item()
    if not std > 0:
        raise DataError(f"{config.preferences}: the reward learned nothing, all replies score {mean:.3g}")
    values = [(v - mean) / std for v in score_prefixes(head.value, data.held_out_rollouts)]
    along = tilt_statistics(head.advantage, policy, data.held_out_rollouts)
    chosen, rejected = zip(*data.held_out_pairs, strict=True)
    metrics = {
        "train_pairs": len(data.train_pairs),
        "held_out_pairs": len(data.held_out_pairs),
        "train_rollouts": len(data.train_rollouts),
        "held_out_rollouts": len(data.held_out_rollouts),
        "length_accuracy": length_accuracy(data.held_out_pairs),
        "reward_accuracy": accuracy(score_replies(head.reward, chosen), score_replies(head.reward, rejected)),
        "advantage_accuracy": accuracy(
            _log_ratios(head, policy, chosen), _log_ratios(head, policy, rejected)
        ),
        "kl_per_token": along.kl.mean().item(),
        "flip_rate": along.flip.float().mean().item(),
        "value_r2": explained_variance(values, (rewards - mean) / std),
    }
    advantage = dataclasses.replace(
        config.advantage.part(), value_per_advantage=value_per_advantage(values, along.centred)
    )
    identity = policy.identity
    return Manifest(
        name=config.name,
        parts=Parts(advantage, config.value.part(), config.reward.part()),
        hidden_size=identity.hidden_size,
        vocab_size=identity.vocab_size,
        base_model=identity.base_model,
        reward_mean=mean,
        reward_std=std,
        trained_on=config.trained_on or _describe(data, config),
        metrics=metrics,
    )


def _log_ratios(head: Head, policy: Policy, replies: Sequence[ReplyFeatures]) -> torch.Tensor:
    assert head.advantage is not None
    lengths = torch.tensor([len(reply.tokens) for reply in replies])
    return sum_by_reply(tilt_statistics(head.advantage, policy, replies).log_ratio, lengths)


def _describe(data: TrainingSet, config: TrainConfig) -> str:
    assert config.preferences is not None
    rollouts = config.rollouts or config.preferences
    return (
        f"{len(data.train_pairs)} pairs of {config.preferences.name}, "
        f"{len(data.train_rollouts)} rollouts of {rollouts.name}"
    )
