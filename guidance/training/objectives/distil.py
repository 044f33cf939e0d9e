"""Objective of distillation: a value scores the tokens that could come next, and an advantage learns from
many of them per state."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from tqdm import tqdm

from trimtab.guidance.data.items import RolloutItem
from trimtab.guidance.errors import DataError
from trimtab.guidance.features.source import FeatureSource
from trimtab.guidance.heads.forms import Head, Scalar, memory_of
from trimtab.guidance.policy import Policy, output_embedding_input
from trimtab.guidance.text.encoding import EncodedReply
from trimtab.guidance.training.config import TrainConfig
from trimtab.guidance.training.objectives.base import Objective, Scores
from trimtab.guidance.training.objectives.tilt import BaseMeans, Tilt

_TOKENS_AT_ONCE = 16384  # of rows, with their padding, and of candidates


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
        if memory_of(value) is not None:
            raise DataError(
                "advantage.loss=distil reads the value at candidates, of which a value that remembers knows "
                "no reply: give --value.form mlp or linear, or train by monte_carlo"
            )
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


@dataclass(frozen=True, slots=True)
class _Lessons:
    """Of n prefixes of a reply: h [n, d]; tokens i64[n, K]; weight [n, K], π₀ of them, 0 where one is not
    judged; target [n, K]."""

    h: Tensor
    tokens: Tensor
    weight: Tensor
    target: Tensor


@torch.no_grad()
def _judge(seen: NextTokens, value: Scalar, reward: Scalar | None, ends: Tensor) -> _Lessons:
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


@dataclass(frozen=True, slots=True)
class NextTokens:
    """Of n prefixes of a row: h [n, d], where the next token is predicted; tokens i64[n, K], the likeliest
    first; weight [n, K], their π₀; after [n, K, d], h once each has been appended. On the CPU, in float32."""

    h: Tensor
    tokens: Tensor
    weight: Tensor
    after: Tensor


_Run = Callable[[Policy, Sequence[tuple[int, ...]], Sequence[Sequence[int]], int], list[NextTokens]]


def run_candidates(
    policy: Policy, rows: Sequence[tuple[int, ...]], lengths: Sequence[Sequence[int]], top_k: int
) -> Iterator[tuple[int, NextTokens]]:
    """(index of a row, the candidates of its prefixes), in any order.

    rows: token ids from the prompt's start on. lengths: of each row's prefixes, 1 … len(row).

    Where the policy attends to all that is before a token, each row runs once, and the candidates of all of
    its prefixes read its K/V behind a mask; else each prefix runs by itself.
    """
    order = sorted(range(len(rows)), key=lambda index: len(rows[index]), reverse=True)
    if not order:
        return
    run: _Run = _together if _can_mask(policy) else _apart
    longest = order[0]
    if run is _together and not _agree(policy, rows[longest], lengths[longest], top_k):
        run = _apart
    while order:
        tokens = len(rows[order[0]]) + top_k * max(len(some) for some in lengths)
        size = max(1, _TOKENS_AT_ONCE // tokens)
        batch, order = order[:size], order[size:]
        found = run(policy, [rows[i] for i in batch], [lengths[i] for i in batch], top_k)
        yield from zip(batch, found, strict=True)


def _can_mask(policy: Policy) -> bool:
    """Not where layers keep a window of the K/V, from which a mask's columns would be missing."""
    config = policy.model.config.get_text_config()
    kinds = getattr(config, "layer_types", None)
    return set(kinds) == {"full_attention"} if kinds else not getattr(config, "sliding_window", None)


def _agree(policy: Policy, row: tuple[int, ...], lengths: Sequence[int], top_k: int) -> bool:
    """Whether the policy honours a mask of ours: not all do that add their own to the scores."""
    ours, plain = (run(policy, [row], [lengths[-1:]], top_k)[0].after for run in (_together, _apart))
    return bool((ours - plain).norm() <= 0.02 * plain.norm())


@torch.no_grad()
def _together(
    policy: Policy, rows: Sequence[tuple[int, ...]], lengths: Sequence[Sequence[int]], top_k: int
) -> list[NextTokens]:
    """Rows are padded on their right, and lengths by repeating the last: the mask hides the first, and the
    second are cut off."""
    ids = pad_sequence([torch.tensor(row) for row in rows], batch_first=True).to(policy.device)
    most = max(len(some) for some in lengths)
    ends = torch.tensor([[*some, *[some[-1]] * (most - len(some))] for some in lengths]).to(policy.device)
    with output_embedding_input(policy.model, lambda h: h[:, :1]) as seen:
        cache = policy.model(input_ids=ids, use_cache=True).past_key_values
    h = seen[0][torch.arange(len(rows), device=policy.device)[:, None], ends - 1]  # [B, n, d]
    weight, tokens = _likeliest(policy, h, top_k)
    places = ends.repeat_interleave(tokens.shape[2], 1)  # [B, n K]
    with output_embedding_input(policy.model, lambda h: h[:, :1]) as seen:
        policy.model(
            input_ids=tokens.flatten(1),
            position_ids=places,
            attention_mask=_mask(places, ids.shape[1], h.dtype),
            past_key_values=cache,
            use_cache=True,
        )
    columns = [
        column.cpu() for column in (h.float(), tokens, weight, seen[0].view(*tokens.shape, -1).float())
    ]
    return [NextTokens(*(column[row, : len(some)] for column in columns)) for row, some in enumerate(lengths)]


def _mask(places: Tensor, num_cached: int, dtype: torch.dtype) -> Tensor:
    """[B, 1, Q, num_cached + Q], added to scores: a candidate sees the row before its place, and itself."""
    before = torch.arange(num_cached, device=places.device) < places[:, :, None]  # [B, Q, num_cached]
    itself = torch.eye(places.shape[1], dtype=torch.bool, device=places.device).expand(len(places), -1, -1)
    seen = torch.cat([before, itself], 2)[:, None]
    return torch.zeros(seen.shape, dtype=dtype, device=places.device).masked_fill(
        ~seen, torch.finfo(dtype).min
    )


@torch.no_grad()
def _apart(
    policy: Policy, rows: Sequence[tuple[int, ...]], lengths: Sequence[Sequence[int]], top_k: int
) -> list[NextTokens]:
    """Each prefix by itself, its K/V copied for each of its candidates."""
    found = []
    for row, some in zip(rows, lengths, strict=True):
        each = [_run_prefix(policy, row[:length], top_k) for length in some]
        found.append(NextTokens(*(torch.stack(column).cpu() for column in zip(*each, strict=True))))
    return found


def _run_prefix(policy: Policy, prefix: tuple[int, ...], top_k: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    with output_embedding_input(policy.model, lambda h: h[:, -1:]) as seen:
        ids = torch.tensor([prefix], device=policy.device)
        cache = policy.model(input_ids=ids, use_cache=True).past_key_values
    h = seen[0][0, -1]
    weight, tokens = _likeliest(policy, h, top_k)
    cache.batch_repeat_interleave(len(tokens))
    with output_embedding_input(policy.model, lambda h: h) as seen:
        policy.model(input_ids=tokens[:, None], past_key_values=cache, use_cache=True)
    return h.float(), tokens, weight, seen[0][:, -1].float()


def _likeliest(policy: Policy, h: Tensor, top_k: int) -> tuple[Tensor, Tensor]:
    """π₀ and ids of the likeliest tokens, [..., K] each, of h [..., d]."""
    logits = policy.logits(h.reshape(-1, h.shape[-1])).view(*h.shape[:-1], -1)
    weight, tokens = logits.softmax(-1).topk(min(top_k, logits.shape[-1]))
    return weight, tokens
