"""Objectives on pairs, rankings and labelled replies, of a reward or an advantage."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from trimtab.guidance.data.items import LabelItem, PairItem, RankingItem
from trimtab.guidance.features.source import FeatureSource
from trimtab.guidance.heads.forms import Head
from trimtab.guidance.losses.common import sum_by_reply
from trimtab.guidance.text.encoding import EncodedReply
from trimtab.guidance.training.config import TrainConfig
from trimtab.guidance.training.objectives.base import Objective, Scores, fetch, lay_out
from trimtab.guidance.training.objectives.shortlist import Shortlists
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
    """Of both replies R = Σ_t ρ_t, Σ_t log π₀(y_t) as …_base, and the number of tokens as …_length."""

    def __init__(self, head: Head, config: TrainConfig, features: FeatureSource) -> None:
        super().__init__(head, config, features)
        assert head.advantage is not None
        self.tilt = Tilt(head.advantage, features.policy)
        self.shortlists = Shortlists(features, config.advantage.shortlist, config.seed)

    def prepare(self, items: Sequence[PairItem]) -> None:
        self.shortlists.make(_both_sides(items), show_progress=self.config.show_progress)

    def forget(self, items: Sequence[PairItem]) -> None:
        self.clear()  # nothing of the advantage depends on them

    def collate(self, items: Sequence[PairItem]) -> dict[str, Tensor]:
        replies = _both_sides(items)
        return lay_out(fetch(self.features, replies)) | self.shortlists.of(replies)

    def forward(
        self, h: Tensor, tokens: Tensor, lengths: Tensor, **shortlist: Tensor
    ) -> tuple[Scores, Scores]:
        self.tilt.watch(h)
        rho, base = self.tilt.log_ratios(h, tokens, **shortlist)
        by_side = {
            "": sum_by_reply(rho, lengths).chunk(2),
            "_base": sum_by_reply(base, lengths).chunk(2),
            "_length": lengths.float().chunk(2),
        }
        scores = {f"chosen{name}": sides[0] for name, sides in by_side.items()}
        scores |= {f"rejected{name}": sides[1] for name, sides in by_side.items()}
        return scores, _log_probabilities(scores)

    def figures(self) -> Scores:
        return self.tilt.measure()


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


class LabelReward(Objective):
    """Rewards of replies, read at s_T, as the logit of P(good | reply)."""

    def __init__(self, head: Head, config: TrainConfig, features: FeatureSource) -> None:
        super().__init__(head, config, features)
        assert head.reward is not None
        self.reward = head.reward

    def collate(self, items: Sequence[LabelItem]) -> dict[str, Tensor]:
        ends = self.features.last([item.reply for item in items]).float()
        return {"ends": ends, "label": torch.tensor([item.label for item in items])}

    def forward(self, ends: Tensor, label: Tensor) -> tuple[Scores, Scores]:
        return {"scores": self.reward(ends), "label": label}, {}


class LabelAdvantage(Objective):
    """R of replies, and of replies to other prompts, which estimate the KL and get no gradient."""

    def __init__(self, head: Head, config: TrainConfig, features: FeatureSource) -> None:
        super().__init__(head, config, features)
        assert head.advantage is not None
        self.tilt = Tilt(head.advantage, features.policy)
        self.shortlists = Shortlists(features, config.advantage.shortlist, config.seed)

    def prepare(self, items: Sequence[LabelItem]) -> None:
        replies = [reply for item in items for reply in item.replies]
        self.shortlists.make(replies, show_progress=self.config.show_progress)

    def forget(self, items: Sequence[LabelItem]) -> None:
        self.clear()  # nothing of the advantage depends on them

    def collate(self, items: Sequence[LabelItem]) -> dict[str, Tensor]:
        strangers = [item.mismatched for item in items if item.mismatched is not None]
        assert len(strangers) == len(items), "items must be mismatched first"
        if len(items) == 1:  # the last batch of an epoch: a mean over two that are one
            strangers *= 2
        batch, other = (
            lay_out(fetch(self.features, replies)) | self.shortlists.of(replies)
            for replies in ([item.reply for item in items], strangers)
        )
        other = {f"other_{name}": x for name, x in other.items()}
        return {**batch, **other, "desirable": torch.tensor([item.label for item in items])}

    def forward(
        self,
        h: Tensor,
        tokens: Tensor,
        lengths: Tensor,
        other_h: Tensor,
        other_tokens: Tensor,
        other_lengths: Tensor,
        desirable: Tensor,
        **shortlists: Tensor,
    ) -> tuple[Scores, Scores]:
        self.tilt.watch(h)
        of_others = {
            name.removeprefix("other_"): shortlists.pop(name)
            for name in list(shortlists)
            if name.startswith("other_")
        }
        rho, base = self.tilt.log_ratios(h, tokens, **shortlists)
        with torch.no_grad():
            other, _ = self.tilt.log_ratios(other_h, other_tokens, **of_others)
        scores = {
            "log_ratio": sum_by_reply(rho, lengths),
            "mismatched": sum_by_reply(other, other_lengths),
            "desirable": desirable,
        }
        logps = sum_by_reply(base + rho.detach(), lengths)
        kinds = {"chosen": desirable, "rejected": ~desirable}
        metrics = {f"logps/{name}": logps[kind].mean() for name, kind in kinds.items() if kind.any()}
        return scores, metrics | {"length": lengths.float().mean()}

    def figures(self) -> Scores:
        return self.tilt.measure()
