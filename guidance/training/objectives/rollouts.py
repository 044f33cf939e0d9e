"""Objectives on scored rollouts, of a reward, a value, or an advantage: Q(s, ·) = V(s) + Ā(s, ·)."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from itertools import accumulate

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from trimtab.guidance.data.items import RolloutItem
from trimtab.guidance.errors import HeadError
from trimtab.guidance.features.source import FeatureSource, Steps, all_steps
from trimtab.guidance.heads.forms import (
    BinnedScalar,
    Head,
    Scalar,
    along,
    make_scalar,
    memory_of,
)
from trimtab.guidance.policy import Policy
from trimtab.guidance.text.encoding import EncodedReply
from trimtab.guidance.training.config import TrainConfig
from trimtab.guidance.training.objectives.base import Objective, Scores, fetch, lay_out, pad
from trimtab.guidance.training.objectives.tilt import BaseMeans, Tilt


class RolloutReward(Objective):
    """Rewards of replies, read at s_T, and the numbers that they were given: the sum where tokens were."""

    def __init__(self, head: Head, config: TrainConfig, features: FeatureSource) -> None:
        super().__init__(head, config, features)
        assert head.reward is not None
        self.reward = head.reward

    def prepare(self, items: Sequence[RolloutItem]) -> None:
        start_at(self.reward, [sum(item.rewards()) for item in items])

    def collate(self, items: Sequence[RolloutItem]) -> dict[str, Tensor]:
        ends = self.features.last([item.reply for item in items]).float()
        return {"ends": ends, "target": torch.tensor([sum(item.rewards()) for item in items])}

    def forward(self, ends: Tensor, target: Tensor) -> tuple[Scores, Scores]:
        return {"scores": self.reward(ends), "target": target}, {}


class ReturnValue(Objective):
    """V(s_t) and the discounted rewards from there on, at the positions that the features hold.

    Where they hold a sample, a reply's sum over positions is one over its sampled ones. A value that
    remembers needs all.
    """

    def __init__(self, head: Head, config: TrainConfig, features: FeatureSource) -> None:
        super().__init__(head, config, features)
        assert head.value is not None
        self.value = head.value

    def prepare(self, items: Sequence[RolloutItem]) -> None:
        returns = [returns_of(item, self.config.value.discount) for item in items]
        start_at(self.value, torch.cat(returns).tolist())

    def collate(self, items: Sequence[RolloutItem]) -> dict[str, Tensor]:
        h, returns = [], []
        for item, steps in zip(items, steps_for(self.value, self.features, items), strict=True):
            at = steps.at[steps.at < item.reply.num_drawn]
            h.append(steps.h[: len(at)])
            returns.append(returns_of(item, self.config.value.discount)[at])
        lengths = torch.tensor([len(sampled) for sampled in h])
        return {"h": torch.cat(h), "lengths": lengths, "returns": pad_sequence(returns, batch_first=True)}

    def forward(self, h: Tensor, lengths: Tensor, returns: Tensor) -> tuple[Scores, Scores]:
        values, mask = pad(along(self.value, h.float(), lengths), lengths)
        return {"values": values, "returns": returns, "mask": mask}, {}


class BinnedReturnValue(ReturnValue):
    """The logits of the value's bins in the place of their mean."""

    def __init__(self, head: Head, config: TrainConfig, features: FeatureSource) -> None:
        super().__init__(head, config, features)
        if not isinstance(head.value, BinnedScalar):
            raise HeadError("value.loss=distributional needs a value with bins: train one that has none anew")
        self.bins = head.value

    @torch.no_grad()
    def forget(self, items: Sequence[RolloutItem]) -> None:
        """The bins' distribution is that of the returns."""
        super().forget(items)
        returns = torch.cat([returns_of(item, self.config.value.discount) for item in items])
        low, high, num = self.bins.low, self.bins.high, len(self.bins.bias)
        place = (returns.clamp(low, high) - low) / (high - low) * (num - 1)
        lower = place.floor().clamp(max=num - 2).long()
        share = torch.zeros(num)
        share.index_add_(0, lower, lower + 1 - place).index_add_(0, lower + 1, place - lower)
        self.bins.bias.copy_((share / share.sum()).clamp(min=1e-6).log())

    def forward(self, h: Tensor, lengths: Tensor, returns: Tensor) -> tuple[Scores, Scores]:
        remembers = memory_of(self.bins) is not None
        logits, mask = pad(self.bins.logits(h.float(), lengths if remembers else None), lengths)
        return {"logits": logits, "returns": returns, "mask": mask}, {}


class WholeReplyValue(ReturnValue):
    """V and what it should forecast at every position, for losses that weigh positions by their place."""

    def collate(self, items: Sequence[RolloutItem]) -> dict[str, Tensor]:
        batch = whole_replies(self.features, items)
        returns = [returns_of(item, self.config.value.discount) for item in items]
        kept = {"h": batch["h"], "lengths": batch["lengths"]}
        return {**kept, "returns": pad_sequence(returns, batch_first=True)}


class BootstrappedValue(ReturnValue):
    """V at every position and the rewards of the tokens, for losses that forecast from the next value."""

    def collate(self, items: Sequence[RolloutItem]) -> dict[str, Tensor]:
        batch = whole_replies(self.features, items)
        return {name: batch[name] for name in ("h", "lengths", "rewards")}

    def forward(self, h: Tensor, lengths: Tensor, rewards: Tensor) -> tuple[Scores, Scores]:
        values, mask = pad(along(self.value, h.float(), lengths), lengths)
        return {"values": values, "rewards": rewards, "mask": mask}, {}


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
        self.value = own_value(head, config, features.policy)

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
        value = along(self.value, h.float(), lengths)
        q, mask = pad(value + self.tilt.drawn(h, tokens), lengths)
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
        advantage, value = self.tilt.centred(h, tokens, mean), along(self.value, h.float(), lengths)
        (q, mask), (values, _) = pad(value + advantage, lengths), pad(value, lengths)
        after = torch.cat([values[:, 1:], torch.zeros_like(values[:, :1])], 1)
        scores = {"q": q, "next_value": self.config.advantage.discount * after.detach()}
        rms = advantage.detach().square().mean().sqrt()
        return {**scores, "rewards": rewards, "mask": mask}, {"advantage/rms": rms}

    def _states(self, reply: EncodedReply) -> Tensor:
        (found,) = fetch(self.features, [reply])
        return found.h[: len(found.tokens)]


def own_value(head: Head, config: TrainConfig, policy: Policy) -> Scalar:
    """A value to learn along with an advantage: a copy of the head's, or as the configuration says."""
    if head.value is not None:
        return copy.deepcopy(head.value).requires_grad_()
    return make_scalar(config.value.part(), policy.identity.hidden_size).to(policy.device)


def steps_for(part: Scalar, features: FeatureSource, items: Sequence[RolloutItem]) -> list[Steps]:
    """The states of each reply that the part can be read at: one that remembers is read at all or none.

    Raises DataError where it needs all and the features do not hold them.
    """
    replies = [item.reply for item in items]
    if memory_of(part) is None:
        return features.steps(replies)
    return [all_steps(h) for h in features.get(replies)]


def whole_replies(features: FeatureSource, items: Sequence[RolloutItem]) -> dict[str, Tensor]:
    """What `lay_out` gives, and rewards [B, T] of the drawn tokens."""
    batch = lay_out(fetch(features, [item.reply for item in items]))
    rewards = [torch.tensor(list(item.rewards())) for item in items]
    return {**batch, "rewards": pad_sequence(rewards, batch_first=True)}


def returns_of(item: RolloutItem, discount: float) -> Tensor:
    """G_t = r_t + γ G_{t+1} of a rollout's drawn tokens, f32[T]: what V(s_0) … V(s_{T−1}) should forecast."""
    from_the_end = accumulate(reversed(list(item.rewards())), lambda later, now: now + discount * later)
    return torch.tensor(list(from_the_end)[::-1])


@torch.no_grad()
def start_at(part: Scalar, targets: Sequence[float]) -> None:
    """An untrained scalar begins at the targets' mean: steps of the size of the learning rate would take
    long to get there. A trained one is left as it is, and so are bins, which begin at their middle."""
    if not isinstance(part, BinnedScalar) and not part.weight.any():
        part.bias.fill_(sum(targets) / len(targets))
