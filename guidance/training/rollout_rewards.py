"""What rewards rollouts: their own columns, or the head's reward part."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import replace

from trimtab.guidance.data.items import RolloutItem
from trimtab.guidance.errors import DataError
from trimtab.guidance.features.source import FeatureSource
from trimtab.guidance.heads.forms import Head
from trimtab.guidance.training.config import TrainConfig
from trimtab.guidance.training.held_out import score_ends

logger = logging.getLogger(__name__)


def reads_columns(items: Sequence[RolloutItem], config: TrainConfig) -> bool:
    """Whether the rewards are those of the rollouts' own columns."""
    return config.reward_from == "columns" or (config.reward_from == "auto" and any(map(_is_scored, items)))


def reward_rollouts(
    items: Sequence[RolloutItem], head: Head, features: FeatureSource, config: TrainConfig
) -> list[RolloutItem]:
    """The rollouts with their rewards.

    Raises:
        DataError: some have none (with on_bad_rows="skip" these are left out), or there is nothing to
            reward them.
    """
    if reads_columns(items, config):
        return _scored(items, config)
    if head.reward is None:
        raise DataError(
            "rollouts have no reward and the head has no reward part: score them (trimtab rollouts "
            "--rescore), or add reward to --parts"
        )
    rewards = score_ends(head.reward, features, [item.reply for item in items]).tolist()
    return [
        replace(item, reward=reward, token_rewards=None) for item, reward in zip(items, rewards, strict=True)
    ]


def _scored(items: Sequence[RolloutItem], config: TrainConfig) -> list[RolloutItem]:
    scored = [item for item in items if _is_scored(item)]
    num_unscored = len(items) - len(scored)
    if num_unscored and (config.on_bad_rows == "refuse" or not scored):
        raise DataError(
            f"{config.rollouts}: {num_unscored} of {len(items)} rollouts have no reward: score them "
            "(trimtab rollouts --rescore), skip bad rows, or give --reward-from head"
        )
    if num_unscored:
        logger.warning("%s: skipped %d rollouts without a reward", config.rollouts, num_unscored)
    return scored


def _is_scored(item: RolloutItem) -> bool:
    return item.reward is not None or item.token_rewards is not None
