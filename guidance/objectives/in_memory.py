"""From batches of cached features to what a loss takes: one module per part of a head.

Replies are laid end to end and never padded: what costs is the vocabulary, once per position.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from trimtab.guidance.head import Advantage, Scalar
from trimtab.guidance.losses.log_ratio import log_ratio, sum_by_reply
from trimtab.guidance.objectives.replies import ReplyFeatures, lay_out
from trimtab.guidance.policy import Policy

Scores = dict[str, Tensor]


Pair = tuple[ReplyFeatures, ReplyFeatures]  # chosen, rejected
ScoredRollout = tuple[ReplyFeatures, float]


class RewardObjective(nn.Module):
    """Rewards of finished replies, read at s_T."""

    def __init__(self, part: Scalar) -> None:
        super().__init__()
        self.part = part

    def forward(self, chosen_end: Tensor, rejected_end: Tensor) -> tuple[Scores, Scores]:
        return {"chosen": self.part(chosen_end), "rejected": self.part(rejected_end)}, {}

    @staticmethod
    def collate(pairs: Sequence[Pair]) -> dict[str, Tensor]:
        ends = [torch.stack([reply.h[-1] for reply in side]).float() for side in zip(*pairs, strict=True)]
        return {"chosen_end": ends[0], "rejected_end": ends[1]}


class AdvantageObjective(nn.Module):
    """R = Σ_t ρ_t of chosen and rejected replies, with the base's logits recomputed from h."""

    def __init__(self, part: Advantage, policy: Policy) -> None:
        super().__init__()
        self.part = part
        self.policy = policy
        self.lm_head = policy.lm_head.float()

    def forward(self, h: Tensor, tokens: Tensor, lengths: Tensor) -> tuple[Scores, Scores]:
        rho, base = log_ratio(self.policy.logits(h), self.part(h.float(), self.lm_head), tokens)
        chosen, rejected = sum_by_reply(rho, lengths).chunk(2)
        base_chosen, base_rejected = sum_by_reply(base, lengths).chunk(2)
        logps = {
            "logps/chosen": (base_chosen + chosen.detach()).mean(),
            "logps/rejected": (base_rejected + rejected.detach()).mean(),
        }
        return {"chosen": chosen, "rejected": rejected}, logps

    @staticmethod
    def collate(pairs: Sequence[Pair]) -> dict[str, Tensor]:
        return lay_out([reply for side in zip(*pairs, strict=True) for reply in side])


class ValueObjective(nn.Module):
    """V(s_0) … V(s_{T−1}) of rollouts and what they should forecast."""

    def __init__(self, part: Scalar) -> None:
        super().__init__()
        self.part = part

    def forward(self, h: Tensor, lengths: Tensor, reward: Tensor) -> tuple[Scores, Scores]:
        values = pad_sequence(self.part(h.float()).split(lengths.tolist()), batch_first=True)
        mask = torch.arange(values.shape[1], device=h.device) < lengths[:, None]
        return {"values": values, "returns": reward, "mask": mask}, {}

    @staticmethod
    def collate(rollouts: Sequence[ScoredRollout]) -> dict[str, Tensor]:
        batch = lay_out([reply for reply, _ in rollouts])
        reward = torch.tensor([score for _, score in rollouts])
        return {"h": batch["h"], "lengths": batch["lengths"], "reward": reward}
