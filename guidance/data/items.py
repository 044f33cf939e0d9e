"""Items: rows with their prompts and replies encoded; loads them from files."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from trimtab.guidance.data.load import PromptRow, load_prompt_rows, load_rows
from trimtab.guidance.data.options import ExtraColumns, RowLimits
from trimtab.guidance.data.rows import Preference, Ranking, ReadColumns, Rollout, Unpaired
from trimtab.guidance.errors import DataError
from trimtab.guidance.policy import Policy
from trimtab.guidance.text.encoding import EncodedReply, ReplyEncoder, Sampled
from trimtab.guidance.text.message import Prompt
from trimtab.guidance.text.notes import RowNotes
from trimtab.guidance.text.prompt_form import Rows, form_of

logger = logging.getLogger(__name__)


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
    plain_rollouts. is_steered: it departs by heads that steered alone."""

    reply: EncodedReply
    reward: float | None = None
    token_rewards: tuple[float, ...] | None = None
    departure: str = ""
    is_steered: bool = False

    @property
    def replies(self) -> tuple[EncodedReply, ...]:
        return (self.reply,)

    @property
    def is_rewarded(self) -> bool:
        return self.reward is not None or self.token_rewards is not None

    def rewards(self) -> Iterator[float]:
        """r_1 … r_T of the drawn tokens: those of the tokens, or nothing until the last, which has it all."""
        if self.token_rewards is not None:
            yield from self.token_rewards
            return
        assert self.reward is not None, "a rollout must be scored first"
        yield from [0.0] * (self.reply.num_drawn - 1)
        yield self.reward


@dataclass(frozen=True, slots=True)
class PromptItem:
    """A prompt that replies are sampled to while training. columns: of its row, what scoring reads."""

    prompt: Prompt
    prompt_ids: tuple[int, ...]
    columns: Mapping[str, Any] = field(default_factory=dict)

    @property
    def replies(self) -> tuple[EncodedReply, ...]:
        return ()


Item = PairItem | RankingItem | LabelItem | RolloutItem


def prompt_of(item: Any) -> tuple[int, ...]:
    """The token ids of an item's prompt."""
    return item.prompt_ids if isinstance(item, PromptItem) else item.replies[0].prompt_ids


def number_prompts(items: Sequence[Any]) -> Tensor:
    """The prompt of each item as a number i64[N], counted from 0 as they come."""
    number: dict[tuple[int, ...], int] = {}
    return torch.tensor([number.setdefault(prompt_of(item), len(number)) for item in items])


class RowEncoder:
    """Rows of any kind as items. Raises DataError or PolicyError as ReplyEncoder does, and DataError for a
    token id that the policy does not have.

    rows, extra_keys: see ReplyEncoder."""

    def __init__(self, policy: Policy, rows: Rows = "auto", *, extra_keys: ExtraColumns = "refuse") -> None:
        """Raises PolicyError where rows are to be chats, and there is no template."""
        self._replies = ReplyEncoder(policy.tokenizer, rows, end_ids=policy.end_ids, extra_keys=extra_keys)
        self._vocab_size = policy.vocab_size

    @property
    def notes(self) -> RowNotes:
        """Oddities of the rows so far."""
        return self._replies.notes

    def encode(self, row: Any) -> Any:
        return _ENCODE[type(row)](self, row)

    def reply(self, prompt: Prompt, text: str, sampled: Sampled | None) -> EncodedReply:
        if sampled is not None:
            self._check(sampled.token_ids)
        reply = self._replies.encode(prompt, text, sampled)
        self._check(reply.prompt_ids + reply.reply_ids)
        return reply

    def _check(self, token_ids: Sequence[int]) -> None:
        """A tokenizer may have more tokens than the model has rows."""
        if max(token_ids, default=0) >= self._vocab_size:
            raise DataError(
                f"token id {max(token_ids)} is not in the policy's vocabulary of {self._vocab_size}"
            )

    def pair(self, row: Preference) -> PairItem:
        chosen = self.reply(row.prompt, row.chosen, row.chosen_sampled)
        rejected = self.reply(row.prompt, row.rejected, row.rejected_sampled)
        return PairItem(chosen, rejected, row.margin or 0.0)

    def ranking(self, row: Ranking) -> RankingItem:
        sampled = row.sampled or (None,) * len(row.responses)
        replies = (self.reply(row.prompt, t, s) for t, s in zip(row.responses, sampled, strict=True))
        return RankingItem(tuple(replies), row.ranks)

    def label(self, row: Unpaired) -> LabelItem:
        return LabelItem(self.reply(row.prompt, row.completion, row.sampled), row.label)

    def rollout(self, row: Rollout) -> RolloutItem:
        reply = self.reply(row.prompt, row.completion, row.sampled)
        return RolloutItem(reply, row.reward, row.token_rewards, row.departure, row.is_steered)

    def prompt(self, row: PromptRow) -> PromptItem:
        prompt_ids = self._replies.prompt_ids(row.prompt)
        self._check(prompt_ids)
        return PromptItem(row.prompt, prompt_ids, row.columns)


_ENCODE: dict[type[Any], Callable[[RowEncoder, Any], Any]] = {
    Preference: RowEncoder.pair,
    Ranking: RowEncoder.ranking,
    Unpaired: RowEncoder.label,
    Rollout: RowEncoder.rollout,
    PromptRow: RowEncoder.prompt,
}


def load_items(
    kind: str,
    path: Path,
    limits: RowLimits,
    policy: Policy,
    *,
    mismatched: bool = False,
    read: ReadColumns | None = None,
) -> list[Any]:
    """The items of a file of rows of one kind of ROW_KINDS. mismatched: those of unpaired rows also get a
    reply to another prompt. read: columns that prompts take along.

    Raises:
        DataError: rows that cannot be read or encoded, or that are all too long.
        PolicyError: the tokenizer cannot render the rows.
    """
    form = form_of(policy.tokenizer, limits.rows, [path])
    rows: Sequence[Any]
    if kind == "prompts":
        rows = load_prompt_rows(path, limits, read, as_text=form == "text").rows
    else:
        rows = load_rows(kind, path, limits, as_text=form == "text").rows
    encoder = RowEncoder(policy, form, extra_keys=limits.extra_columns)
    items, bad = _encode_rows(rows, encoder)
    if bad and (limits.on_bad_rows == "refuse" or not items):
        raise DataError(f"{path}: {len(bad)} bad rows, first {bad[0]}: mend them or skip bad rows")
    if bad:
        logger.warning("%s: skipped %d bad rows, first %s", path, len(bad), bad[0])
    encoder.notes.tell(logger, path)
    limit = max_length(limits, policy)
    fitting = [item for item in items if num_tokens(item) <= limit]
    if not fitting:
        fix = "raise it" if limit == limits.max_tokens else "give shorter ones"
        raise DataError(f"{path}: every row is longer than {_limit_name(limits, limit)}: {fix}")
    if len(fitting) < len(items):
        num, name = len(items) - len(fitting), _limit_name(limits, limit)
        logger.warning("%s: left out %d rows longer than %s", path, num, name)
    return _mismatched(path, fitting, limit) if kind == "unpaired" and mismatched else fitting


def _encode_rows(rows: Sequence[Any], encoder: RowEncoder) -> tuple[list[Any], list[str]]:
    """Items of rows, and what is wrong with those that cannot be encoded. Raises PolicyError."""
    items, bad = [], []
    for row in rows:
        try:
            items.append(encoder.encode(row))
        except DataError as error:
            bad.append(f"prompt {str(row.prompt)[:40]!r}: {error}")
    return items, bad


def num_tokens(item: Any) -> int:
    """Of the longest reply with its prompt."""
    return max((reply.num_tokens for reply in item.replies), default=len(prompt_of(item)))


def max_length(limits: RowLimits, policy: Policy) -> int:
    """Tokens of a prompt with its reply: what the configuration allows, within the policy's context."""
    context = getattr(policy.model.config.get_text_config(), "max_position_embeddings", None)
    return min(limits.max_tokens, context or limits.max_tokens)


def _limit_name(limits: RowLimits, limit: int) -> str:
    is_own = limit == limits.max_tokens
    return f"max_tokens={limit}" if is_own else f"the policy's context of {limit} tokens"


def _mismatched(path: Path, items: Sequence[LabelItem], limit: int) -> list[LabelItem]:
    """With replies to other prompts, shortened where they would not fit."""
    try:
        return [_shortened(item, limit) for item in mismatch(items)]
    except ValueError as error:
        raise DataError(f"{path}: {error}") from error


def _shortened(item: LabelItem, limit: int) -> LabelItem:
    other = item.mismatched
    assert other is not None
    if other.num_tokens <= limit:
        return item
    kept = other.reply_ids[: limit - len(other.prompt_ids)]
    return replace(item, mismatched=EncodedReply(other.prompt_ids, kept))


def mismatch(items: Sequence[LabelItem]) -> list[LabelItem]:
    """Each item with the reply of the next one that has another prompt, the last followed by the first.

    By hand: prompts p, p, q with replies a, b, c: p gets c, p gets c, q gets a.

    Raises:
        DataError: all items have one prompt.
    """
    if len({item.reply.prompt_ids for item in items}) < 2:
        raise DataError("all rows have one prompt: kto needs replies to other prompts to compare with")
    return [replace(item, mismatched=_reply_to_another(items, i)) for i, item in enumerate(items)]


def _reply_to_another(items: Sequence[LabelItem], index: int) -> EncodedReply:
    prompt = items[index].reply.prompt_ids
    following = (items[(index + step) % len(items)].reply for step in range(1, len(items)))
    other = next(reply for reply in following if reply.prompt_ids != prompt)
    return replace(other, prompt_ids=prompt)
