"""What an advantage learns from scored rollouts of the policy: Q(s, ·) = V(s) + Ā(s, ·) of drawn tokens."""

from __future__ import annotations

import copy
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from trimtab.guidance.data.items import RolloutItem
from trimtab.guidance.features.source import FeatureSource
from trimtab.guidance.heads.forms import Head, Scalar, make_scalar
from trimtab.guidance.policy import Policy
from trimtab.guidance.text.encoding import EncodedReply
from trimtab.guidance.training.config import TrainConfig
from trimtab.guidance.training.objectives.base import Objective, Scores
from trimtab.guidance.training.objectives.base_mean import BaseMeans
from trimtab.guidance.training.objectives.replies import fetch, pad
from trimtab.guidance.training.objectives.rollouts import returns_of, start_at, whole_replies
from trimtab.guidance.training.objectives.tilt import Tilt


class ReturnAdvantage(Objective):
    """Q = V + A and the discounted rewards from the drawn token on, at every position.

    V is a value of its own, trained by the same loss and thrown away: it may be discounted otherwise than the
    head's value, which a request's target reads. It begins as a copy of the head's value, where there is one;
    else it is built as the configuration says. What V does not know of a state is in A too, which changes no
    tilt and spares centring: only the drawn tokens' rows of the vocabulary are read.
    """

    def __init__(self, head: Head, config: TrainConfig, features: FeatureSource) -> None:
        super().__init__(head, config, features)
        assert head.advantage is not None
        self.tilt = Tilt(head.advantage, features.policy)
        self.value = _own_value(head, config, features.policy)

    def prepare(self, items: Sequence[RolloutItem]) -> None:
        returns = [returns_of(item, self.config.advantage.discount) for item in items]
        start_at(self.value, torch.cat(returns).tolist())

    def collate(self, items: Sequence[RolloutItem]) -> dict[str, Tensor]:
        batch = whole_replies(self.features, items)
        returns = [returns_of(item, self.config.advantage.discount) for item in items]
        kept = {name: batch[name] for name in ("h", "tokens", "lengths")}
        return {**kept, "returns": pad_sequence(returns, batch_first=True)}

    def forward(self, h: Tensor, tokens: Tensor, lengths: Tensor, returns: Tensor) -> tuple[Scores, Scores]:
        self.tilt.watch(h)
        q, mask = pad(self.value(h.float()) + self.tilt.drawn(h, tokens), lengths)
        return {"q": q, "returns": returns, "mask": mask}, {}

    def figures(self) -> Scores:
        return self.tilt.measure()


class BootstrappedAdvantage(ReturnAdvantage):
    """Q = V + Ā, the rewards of the tokens, and what is forecast after each: γ Σ_z π₀(z|s_t) Q(s_t, z) =
    γ V(s_t), for Ā is centred; 0 after the last."""

    def __init__(self, head: Head, config: TrainConfig, features: FeatureSource) -> None:
        super().__init__(head, config, features)
        self.means = BaseMeans(features.policy)

    def prepare(self, items: Sequence[RolloutItem]) -> None:
        super().prepare(items)
        if self.tilt.is_tied:
            replies = dict.fromkeys(item.reply for item in items)
            self.means.compute((reply, self._states(reply)) for reply in replies)

    def forget(self, items: Sequence[RolloutItem]) -> None:
        self.clear()
        super().prepare(items)  # the means do not change

    def collate(self, items: Sequence[RolloutItem]) -> dict[str, Tensor]:
        batch = whole_replies(self.features, items)
        mean = self.means.of([item.reply for item in items])
        return batch if mean is None else {**batch, "mean": mean}

    def forward(
        self, h: Tensor, tokens: Tensor, lengths: Tensor, rewards: Tensor, mean: Tensor | None = None
    ) -> tuple[Scores, Scores]:
        self.tilt.watch(h)
        advantage, value = self.tilt.centred(h, tokens, mean), self.value(h.float())
        (q, mask), (values, _) = pad(value + advantage, lengths), pad(value, lengths)
        after = torch.cat([values[:, 1:], torch.zeros_like(values[:, :1])], 1)
        scores = {"q": q, "next_value": self.config.advantage.discount * after.detach()}
        rms = advantage.detach().square().mean().sqrt()
        return {**scores, "rewards": rewards, "mask": mask}, {"advantage/rms": rms}

    def _states(self, reply: EncodedReply) -> Tensor:
        (found,) = fetch(self.features, [reply])
        return found.h[: len(found.tokens)]


def _own_value(head: Head, config: TrainConfig, policy: Policy) -> Scalar:
    if head.value is not None:
        return copy.deepcopy(head.value).requires_grad_()
    return make_scalar(config.value.part(), policy.identity.hidden_size).to(policy.device)
