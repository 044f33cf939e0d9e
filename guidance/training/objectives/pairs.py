"""What a reward or an advantage learns from pairs of a chosen and a rejected reply."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from trimtab.guidance.data.items import PairItem
from trimtab.guidance.features.source import FeatureSource
from trimtab.guidance.heads.forms import Head
from trimtab.guidance.losses.log_ratio import sum_by_reply
from trimtab.guidance.text.encoding import EncodedReply
from trimtab.guidance.training.config import TrainConfig
from trimtab.guidance.training.objectives.base import Objective, Scores
from trimtab.guidance.training.objectives.replies import fetch, lay_out
from trimtab.guidance.training.objectives.tilt import Tilt


class PairReward(Objective):
    """Rewards of both replies, read at s_T. A row's own margin adds to the configured one."""

    def __init__(self, head: Head, config: TrainConfig, features: FeatureSource) -> None:
        super().__init__(head, config, features)
        assert head.reward is not None
        self.reward = head.reward

    def collate(self, items: Sequence[PairItem]) -> dict[str, Tensor]:
        ends = self.features.last(_both_sides(items)).float()
        margin = self.config.reward.margin
        return {"ends": ends, "margin": torch.tensor([item.margin + margin for item in items])}

    def forward(self, ends: Tensor, margin: Tensor) -> tuple[Scores, Scores]:
        chosen, rejected = self.reward(ends).chunk(2)
        return {"chosen": chosen, "rejected": rejected, "margin": margin}, {}


class PairAdvantage(Objective):
    """R = Σ_t ρ_t of both replies."""

    takes: tuple[str, ...] = ("chosen", "rejected")

    def __init__(self, head: Head, config: TrainConfig, features: FeatureSource) -> None:
        super().__init__(head, config, features)
        assert head.advantage is not None
        self.tilt = Tilt(head.advantage, features.policy)

    def collate(self, items: Sequence[PairItem]) -> dict[str, Tensor]:
        return lay_out(fetch(self.features, _both_sides(items)))

    def forward(self, h: Tensor, tokens: Tensor, lengths: Tensor) -> tuple[Scores, Scores]:
        self.tilt.watch(h)
        rho, base, _ = self.tilt.log_ratio(h, tokens)
        by_side = {
            "": sum_by_reply(rho, lengths).chunk(2),
            "_base": sum_by_reply(base, lengths).chunk(2),
            "_length": lengths.float().chunk(2),
        }
        scores = {f"chosen{name}": sides[0] for name, sides in by_side.items()}
        scores |= {f"rejected{name}": sides[1] for name, sides in by_side.items()}
        return {name: scores[name] for name in self.takes}, _log_probabilities(scores)

    def figures(self) -> Scores:
        return self.tilt.measure()


class AveragePairAdvantage(PairAdvantage):
    """With the lengths |y| of the replies, for losses that average over tokens."""

    takes = ("chosen", "rejected", "chosen_length", "rejected_length")


class LikelihoodPairAdvantage(PairAdvantage):
    """With log π₀ of the replies too, for losses on the likelihood itself."""

    takes = (*AveragePairAdvantage.takes, "chosen_base", "rejected_base")


def _both_sides(items: Sequence[PairItem]) -> list[EncodedReply]:
    return [item.chosen for item in items] + [item.rejected for item in items]


@torch.no_grad()
def _log_probabilities(scores: Scores) -> Scores:
    """log π₁ of replies, in nats: both may fall while the margin between them grows."""
    return {
        f"{name}/{side}": metric.mean()
        for side in ("chosen", "rejected")
        for name, metric in (
            ("logps", scores[f"{side}_base"] + scores[side]),
            ("length", scores[f"{side}_length"]),
        )
    }
