"""What a method trains on: rows with their replies encoded."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from trimtab.guidance.text.encoding import EncodedReply


@dataclass(frozen=True, slots=True)
class PairItem:
    """Two replies to one prompt. margin: by how much the first is to score above the second."""

    chosen: EncodedReply
    rejected: EncodedReply
    margin: float = 0.0

    @property
    def replies(self) -> tuple[EncodedReply, ...]:
        return (self.chosen, self.rejected)


@dataclass(frozen=True, slots=True)
class RankingItem:
    """Replies to one prompt with their ranks: a lower one is better, equal ones are not compared."""

    replies: tuple[EncodedReply, ...]
    ranks: tuple[float, ...]


@dataclass(frozen=True, slots=True)
class LabelItem:
    """A reply with thumbs up or down. mismatched: another item's reply to this one's prompt, which KTO
    measures its reference point on."""

    reply: EncodedReply
    label: bool
    mismatched: EncodedReply | None = None

    @property
    def replies(self) -> tuple[EncodedReply, ...]:
        return (self.reply,) if self.mismatched is None else (self.reply, self.mismatched)


@dataclass(frozen=True, slots=True)
class RolloutItem:
    """A reply of the policy. reward: of the whole reply. token_rewards: one for every drawn token, which
    takes the place of the reward. Both None where nothing has scored it yet. departure: see
    plain_rollouts."""

    reply: EncodedReply
    reward: float | None = None
    token_rewards: tuple[float, ...] | None = None
    departure: str = ""

    @property
    def replies(self) -> tuple[EncodedReply, ...]:
        return (self.reply,)

    def rewards(self) -> Iterator[float]:
        """r_1 … r_T of the drawn tokens: those of the tokens, or nothing until the last, which has it all."""
        if self.token_rewards is not None:
            yield from self.token_rewards
            return
        assert self.reward is not None, "a rollout must be scored first"
        yield from [0.0] * (self.reply.num_drawn - 1)
        yield self.reward


Item = PairItem | RankingItem | LabelItem | RolloutItem
