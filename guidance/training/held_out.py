"""Measures of a head on held-out prompts: scores, units, the tilt along replies; rewards rollouts."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from trimtab.guidance.data.items import RolloutItem
from trimtab.guidance.errors import DataError
from trimtab.guidance.features.source import FeatureSource
from trimtab.guidance.heads.forms import Advantage, Head, Scalar, along
from trimtab.guidance.losses.vocabulary_tiles import tile_rows
from trimtab.guidance.policy import Policy
from trimtab.guidance.text.encoding import EncodedReply
from trimtab.guidance.training.config import TrainConfig
from trimtab.guidance.training.objectives.base import ReplyFeatures, fetch, lay_out

logger = logging.getLogger(__name__)

_POSITIONS_PER_CHUNK = 4096
_REPLIES_PER_CHUNK = 64


@dataclass(frozen=True, slots=True)
class TiltStatistics:
    """At each of N positions: ρ of the token that came, its centred advantage Ā, E_{π₀}[Ā²], KL(π₁‖π₀), and
    whether π₁ and π₀ prefer different tokens. All [N], of drawn tokens, and of the scaled advantage."""

    log_ratio: Tensor
    centred: Tensor
    variance: Tensor
    kl: Tensor
    flip: Tensor


def fetch_in_chunks(features: FeatureSource, replies: Sequence[EncodedReply]) -> Iterator[ReplyFeatures]:
    """Replies with their features, of which no more than a few are held at once."""
    for start in range(0, len(replies), _REPLIES_PER_CHUNK):
        yield from fetch(features, replies[start : start + _REPLIES_PER_CHUNK])


@torch.no_grad()
def score_ends(part: Scalar, features: FeatureSource, replies: Sequence[EncodedReply]) -> Tensor:
    """The raw reward of each finished reply, read at s_T -> f32[len(replies)], on the CPU."""
    chunks = [features.last(replies[i : i + 4096]) for i in range(0, len(replies), 4096)]
    return torch.cat([part(ends.to(part.weight.device).float()).cpu() for ends in chunks])


@torch.no_grad()
def score_prefixes(part: Scalar, replies: Iterable[ReplyFeatures]) -> list[Tensor]:
    """V, raw, where each drawn token of each reply is predicted, V(s_0) … V(s_{T−1}), on the CPU."""
    return [score_prefix(part, reply.h[: len(reply.tokens)]) for reply in replies]


@torch.no_grad()
def score_prefix(part: Scalar, h: Tensor) -> Tensor:
    """V, raw, at h [T, d] of one reply's states -> [T], on the CPU; from s_0 on for a part that remembers."""
    h = h.to(part.weight.device).float()
    return along(part, h, torch.tensor([len(h)])).cpu()


def accuracy(chosen: Tensor, rejected: Tensor) -> float:
    """The share of pairs whose chosen reply scores higher; a tie counts half."""
    wins = (chosen > rejected).float() + 0.5 * (chosen == rejected).float()
    return wins.mean().item()


def better_of_lengths(chosen: Tensor, rejected: Tensor) -> float:
    """The accuracy of the better of two rules that read nothing: pick the longer reply, pick the shorter.

    chosen, rejected: [N], numbers of tokens.
    """
    longer = accuracy(chosen, rejected)
    return max(longer, 1 - longer)


def standard_units(rewards: Tensor) -> tuple[float, float]:
    """reward_mean and reward_std of the policy's own replies, of raw rewards [N].

    Raises:
        DataError: they do not vary, so that nothing can be told in units of their spread.
    """
    mean, std = rewards.double().mean().item(), rewards.double().std(correction=0).item()
    if not std > 1e-9 * max(1.0, abs(mean)):
        raise DataError(
            f"the reward has learned nothing, all {len(rewards)} held-out replies score {mean:.3g}: "
            "give other data, or train it longer"
        )
    return mean, std


@torch.no_grad()
def tilt_statistics(
    part: Advantage, policy: Policy, replies: Iterable[ReplyFeatures], *, scale: float = 1.0
) -> TiltStatistics:
    """Statistics of the tilt at strength 1 along replies that are already written. scale: the manifest's."""
    lm_head = policy.lm_head.float()
    size = tile_rows(policy.vocab_size)  # of which a few are at work at once
    pieces = [
        _chunk_statistics(part, policy, lm_head, some_h, some_tokens, scale)
        for h, tokens in _positions(replies)
        for some_h, some_tokens in zip(h.split(size), tokens.split(size), strict=True)
    ]
    return TiltStatistics(*(torch.cat(column) for column in zip(*pieces, strict=True)))


def _chunk_statistics(
    part: Advantage, policy: Policy, lm_head: Tensor, h: Tensor, tokens: Tensor, scale: float
) -> tuple[Tensor, ...]:
    h, tokens = h.to(policy.device), tokens.to(policy.device)
    logits = policy.logits(h)
    column, vocabulary = part.factors(h.float(), lm_head)
    advantage = scale * (column @ vocabulary.T)
    base, tilt = logits.log_softmax(-1), (logits + advantage).log_softmax(-1)
    probability = base.exp()
    centred = advantage - (probability * advantage).sum(-1, keepdim=True)
    columns = (
        _pick(tilt, tokens) - _pick(base, tokens),
        _pick(centred, tokens),
        (probability * centred.square()).sum(-1),
        (tilt.exp() * (tilt - base)).sum(-1),
        tilt.argmax(-1) != base.argmax(-1),
    )
    return tuple(column.cpu() for column in columns)


def _positions(replies: Iterable[ReplyFeatures]) -> Iterator[tuple[Tensor, Tensor]]:
    """h and tokens of whole replies, until they are _POSITIONS_PER_CHUNK or more; then cut to that."""
    waiting: list[ReplyFeatures] = []
    for reply in replies:
        waiting.append(reply)
        if sum(len(r.tokens) for r in waiting) >= _POSITIONS_PER_CHUNK:
            yield from _cut(waiting)
            waiting = []
    if waiting:
        yield from _cut(waiting)


def _cut(replies: Sequence[ReplyFeatures]) -> Iterator[tuple[Tensor, Tensor]]:
    batch = lay_out(replies)
    pieces = (batch[name].split(_POSITIONS_PER_CHUNK) for name in ("h", "tokens"))
    yield from zip(*pieces, strict=True)


def _pick(table: Tensor, tokens: Tensor) -> Tensor:
    return table.gather(1, tokens[:, None])[:, 0]


def slope(x: Tensor, y: Tensor) -> float | None:
    """The least-squares slope of y on x, with intercept; None where x does not vary. x, y: [N]."""
    x, y = x.double(), y.double()
    x = x - x.mean()
    spread = x.square().sum().item()
    return (x * y).sum().item() / spread if spread > 0 else None


def value_per_advantage(values: Sequence[Tensor], centred: Tensor) -> float | None:
    """The slope of V(s_t) − V(s_{t−1}) on Ā(s_{t−1}, y_t), 1 ≤ t < T.

    values: per reply V(s_0) … V(s_{T−1}), in standard units. centred: scaled Ā at y_1 … y_T, replies end to
    end.
    """
    per_reply = torch.split(centred, [len(v) for v in values])
    return slope(torch.cat([a[:-1] for a in per_reply]), torch.cat([v.diff() for v in values]))


def reads_columns(items: Sequence[RolloutItem], config: TrainConfig) -> bool:
    """Whether the rewards are those of the rollouts' own columns."""
    return config.reward_from in ("columns", "reply") or (
        config.reward_from == "auto" and any(item.is_rewarded for item in items)
    )


def reward_rollouts(
    items: Sequence[RolloutItem], head: Head, features: FeatureSource, config: TrainConfig
) -> list[RolloutItem]:
    """The rollouts with their rewards.

    Raises:
        DataError: some have none (with on_bad_rows="skip" these are left out), or there is nothing to
            reward them.
    """
    if reads_columns(items, config):
        scored = _scored(items, config)
        return [_told_at_the_end(item) for item in scored] if config.reward_from == "reply" else scored
    if head.reward is None:
        raise DataError(
            "rollouts have no reward and the head has no reward part: score them (trimtab rollouts "
            "--rescore), or add reward to --parts"
        )
    rewards = score_ends(head.reward, features, [item.reply for item in items]).tolist()
    return [
        replace(item, reward=reward, token_rewards=None) for item, reward in zip(items, rewards, strict=True)
    ]


def _told_at_the_end(item: RolloutItem) -> RolloutItem:
    return replace(item, reward=sum(item.rewards()), token_rewards=None)


def _scored(items: Sequence[RolloutItem], config: TrainConfig) -> list[RolloutItem]:
    scored = [item for item in items if item.is_rewarded]
    num_unscored = len(items) - len(scored)
    if num_unscored and (config.on_bad_rows == "refuse" or not scored):
        raise DataError(
            f"{config.rollouts}: {num_unscored} of {len(items)} rollouts have no reward: score them "
            "(trimtab rollouts --rescore), skip bad rows, or give --reward-from head"
        )
    if num_unscored:
        logger.warning("%s: skipped %d rollouts without a reward", config.rollouts, num_unscored)
    return scored
