"""What a reward learns from ranked replies to one prompt."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from trimtab.guidance.data.items import RankingItem
from trimtab.guidance.features.source import FeatureSource
from trimtab.guidance.heads.forms import Head
from trimtab.guidance.training.config import TrainConfig
from trimtab.guidance.training.objectives.base import Objective, Scores


class RankingReward(Objective):
    """Rewards of all replies to each prompt, each scored once."""

    def __init__(self, head: Head, config: TrainConfig, features: FeatureSource) -> None:
        super().__init__(head, config, features)
        assert head.reward is not None
        self.reward = head.reward

    def collate(self, items: Sequence[RankingItem]) -> dict[str, Tensor]:
        sizes = torch.tensor([len(item.replies) for item in items])
        ranks = torch.tensor([rank for item in items for rank in item.ranks], dtype=torch.float64)
        return {
            "ends": self.features.last([reply for item in items for reply in item.replies]).float(),
            "group": torch.arange(len(items)).repeat_interleave(sizes),
            "rank": ranks.unique(return_inverse=True)[1],  # any numbers become 0, 1, …, their order kept
        }

    def forward(self, ends: Tensor, group: Tensor, rank: Tensor) -> tuple[Scores, Scores]:
        return {"scores": self.reward(ends), "group": group, "rank": rank}, {}
