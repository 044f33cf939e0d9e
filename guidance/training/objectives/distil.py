"""What an advantage learns from a value that scores the tokens which could come next: many per state."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from tqdm import tqdm

from trimtab.guidance.data.items import RolloutItem
from trimtab.guidance.errors import DataError
from trimtab.guidance.features.source import FeatureSource
from trimtab.guidance.heads.forms import Head, Scalar
from trimtab.guidance.policy import Policy
from trimtab.guidance.text.encoding import EncodedReply
from trimtab.guidance.training.config import TrainConfig
from trimtab.guidance.training.objectives.base import Objective, Scores
from trimtab.guidance.training.objectives.base_mean import BaseMeans
from trimtab.guidance.training.objectives.candidates import Candidates, run_candidates
from trimtab.guidance.training.objectives.tilt import Tilt


@dataclass(frozen=True, slots=True)
class _Lessons:
    """Of n prefixes of a reply: h [n, d]; tokens i64[n, K]; weight [n, K], π₀ of them, 0 where one is not
    judged; target [n, K]."""

    h: Tensor
    tokens: Tensor
    weight: Tensor
    target: Tensor


class DistilledAdvantage(Objective):
    """Ā of the top_k candidates after num_prefixes prefixes of each reply, and the teacher's scores of them.

    The teacher is the head's value, at the state that a candidate leads to: Q(s, a) = V(s a), as long as
    rewards come at the end. A candidate that ends the reply leads to no state that a value was trained at:
    the head's reward, which speaks the same units, judges it; without a reward it is left out.
    """

    def __init__(self, head: Head, config: TrainConfig, features: FeatureSource) -> None:
        super().__init__(head, config, features)
        assert head.advantage is not None
        assert head.value is not None
        self.tilt = Tilt(head.advantage, features.policy)
        self._teacher = (head.value, head.reward)  # in a tuple: not among this module's parameters
        self._lessons: dict[EncodedReply, _Lessons] = {}
        self._means = BaseMeans(features.policy)

    def prepare(self, items: Sequence[RolloutItem]) -> None:
        """Scores the candidates of all items that are new."""
        own_rewards = self.config.reward_from != "head"
        if own_rewards and any(item.token_rewards is not None for item in items):
            raise DataError(
                "advantage.loss=distil reads a value that forecasts a reply's one reward: give rollouts "
                "without token_rewards, or train by monte_carlo"
            )
        value, reward = self._teacher
        ends, settings = _end_ids(self.policy, items), self.config.advantage
        replies = list(dict.fromkeys(item.reply for item in items if item.reply not in self._lessons))
        if not replies:
            return
        rows = [reply.prompt_ids + reply.reply_ids[: reply.num_drawn] for reply in replies]
        lengths = [
            [
                len(reply.prompt_ids) + at
                for at in _sample_positions(reply, settings.num_prefixes, self.config.seed)
            ]
            for reply in replies
        ]
        bar = tqdm(total=len(rows), desc="teacher", unit="reply", disable=not self.config.show_progress)
        with bar:
            for index, seen in run_candidates(self.policy, rows, lengths, settings.top_k):
                self._lessons[replies[index]] = _judge(seen, value, reward, ends)
                bar.update()
        if self.tilt.is_tied:
            self._means.compute((reply, self._lessons[reply].h) for reply in replies)

    def prepare_held_out(self, items: Sequence[RolloutItem]) -> None:
        self.prepare(items)

    def forget(self, items: Sequence[RolloutItem]) -> None:
        self.clear()  # nothing of the advantage depends on them

    def collate(self, items: Sequence[RolloutItem]) -> dict[str, Tensor]:
        lessons = [self._lessons[item.reply] for item in items]
        names = ("h", "tokens", "weight", "target")
        batch = {name: torch.cat([getattr(lesson, name) for lesson in lessons]) for name in names}
        batch["lengths"] = torch.tensor([len(lesson.h) for lesson in lessons])
        mean = self._means.of([item.reply for item in items])
        return batch if mean is None else {**batch, "mean": mean}

    def forward(
        self,
        h: Tensor,
        tokens: Tensor,
        weight: Tensor,
        target: Tensor,
        lengths: Tensor,
        mean: Tensor | None = None,
    ) -> tuple[Scores, Scores]:
        self.tilt.watch(h)
        advantage = self.tilt.centred(h, tokens, mean)
        with torch.no_grad():  # the likeliest candidate comes first
            teacher_flips = (weight.log() + target).argmax(1) != 0
        metrics = {"teacher/flip_rate": teacher_flips.float().mean()}
        scores = {"advantage": advantage, "target": target, "weight": weight, "lengths": lengths}
        return scores, metrics

    def figures(self) -> Scores:
        return self.tilt.measure()


@torch.no_grad()
def _judge(seen: Candidates, value: Scalar, reward: Scalar | None, ends: Tensor) -> _Lessons:
    after, is_end = seen.after.to(value.weight.device), torch.isin(seen.tokens, ends)
    target = value(after).cpu()
    if reward is None:
        return _Lessons(seen.h, seen.tokens, seen.weight * ~is_end, target)
    return _Lessons(seen.h, seen.tokens, seen.weight, reward(after).cpu().where(is_end, target))


def _end_ids(policy: Policy, items: Sequence[RolloutItem]) -> Tensor:
    """The tokens that end a reply: the policy's own, and those that the rollouts end with."""
    drawn = {item.reply.reply_ids[-1] for item in items if not item.reply.is_cut}
    return torch.tensor(sorted({*policy.end_ids, *drawn}))


def _sample_positions(reply: EncodedReply, count: int, seed: int) -> list[int]:
    """At most `count` of the places where a drawn token is predicted, 0 … T−1; always the same ones."""
    drawn = reply.reply_ids[: reply.num_drawn]
    key = hashlib.sha256(repr((seed, reply.prompt_ids, drawn)).encode()).digest()
    generator = torch.Generator().manual_seed(int.from_bytes(key[:7], "big"))
    order: list[int] = torch.randperm(reply.num_drawn, generator=generator)[:count].tolist()
    return sorted(order)
