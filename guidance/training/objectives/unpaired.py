"""What a reward or an advantage learns from single replies, each called good or bad."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import torch
from torch import Tensor

from trimtab.guidance.data.items import LabelItem
from trimtab.guidance.errors import DataError
from trimtab.guidance.features.source import FeatureSource
from trimtab.guidance.heads.forms import Head
from trimtab.guidance.losses.log_ratio import sum_by_reply
from trimtab.guidance.text.encoding import EncodedReply
from trimtab.guidance.training.config import TrainConfig
from trimtab.guidance.training.objectives.base import Objective, Scores
from trimtab.guidance.training.objectives.replies import fetch, lay_out
from trimtab.guidance.training.objectives.tilt import Tilt


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

    def collate(self, items: Sequence[LabelItem]) -> dict[str, Tensor]:
        strangers = [item.mismatched for item in items if item.mismatched is not None]
        assert len(strangers) == len(items), "items must be mismatched first"
        if len(items) == 1:  # the last batch of an epoch: a mean over two that are one
            strangers *= 2
        batch = lay_out(fetch(self.features, [item.reply for item in items]))
        other = {f"other_{name}": x for name, x in lay_out(fetch(self.features, strangers)).items()}
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
    ) -> tuple[Scores, Scores]:
        self.tilt.watch(h)
        rho, base, _ = self.tilt.log_ratio(h, tokens)
        with torch.no_grad():
            other = self.tilt.log_ratio(other_h, other_tokens).log_ratio
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


def mismatch(items: Sequence[LabelItem]) -> list[LabelItem]:
    """Each item with the reply of the next one that has another prompt, the last followed by the first.

    By hand: prompts p, p, q with replies a, b, c: p gets c, p gets c, q gets a.

    Raises:
        DataError: all items have one prompt.
    """
    if len({item.reply.prompt_ids for item in items}) < 2:
        raise DataError("all rows have one prompt: kto needs replies to other prompts to compare with")
    return [dataclasses.replace(item, mismatched=_stranger(items, i)) for i, item in enumerate(items)]


def _stranger(items: Sequence[LabelItem], index: int) -> EncodedReply:
    prompt = items[index].reply.prompt_ids
    following = (items[(index + step) % len(items)].reply for step in range(1, len(items)))
    other = next(reply for reply in following if reply.prompt_ids != prompt)
    return dataclasses.replace(other, prompt_ids=prompt)
