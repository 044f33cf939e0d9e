"""The examples of a training run: rows encoded, over-long ones left out, prompts split into two sets."""

from __future__ import annotations

import hashlib
import logging
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Generic, TypeVar

from trimtab.guidance.data.items import Item, LabelItem, PairItem, RankingItem, RolloutItem
from trimtab.guidance.data.load import PromptRow, load_prompt_rows, load_rows
from trimtab.guidance.data.options import ExtraColumns, RowLimits
from trimtab.guidance.data.rows import Preference, Ranking, ReadColumns, Rollout, Unpaired
from trimtab.guidance.errors import DataError
from trimtab.guidance.losses.preference import UNPAIRED
from trimtab.guidance.policy import Policy
from trimtab.guidance.text.encoding import EncodedReply, ReplyEncoder, Sampled
from trimtab.guidance.text.message import Prompt
from trimtab.guidance.text.notes import RowNotes
from trimtab.guidance.text.prompt_form import Form, Rows, form_of
from trimtab.guidance.training.config import ROW_FILES, TrainConfig
from trimtab.guidance.training.objectives.pairs import mismatch

logger = logging.getLogger(__name__)
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class PromptItem:
    """A prompt that replies are sampled to while training. columns: of its row, what scoring reads."""

    prompt: Prompt
    prompt_ids: tuple[int, ...]
    columns: Mapping[str, Any] = field(default_factory=dict)

    @property
    def replies(self) -> tuple[EncodedReply, ...]:
        return ()


@dataclass(frozen=True, slots=True)
class Split(Generic[T]):
    """What is trained on, and what judges."""

    train: tuple[T, ...] = ()
    held_out: tuple[T, ...] = ()


@dataclass(frozen=True, slots=True)
class Examples:
    """No prompt is both trained on and held out. A kind of rows that the run has no file of is empty."""

    pairs: Split[PairItem] = Split()
    rankings: Split[RankingItem] = Split()
    unpaired: Split[LabelItem] = Split()
    rollouts: Split[RolloutItem] = Split()
    prompts: Split[PromptItem] = Split()

    def replies(self) -> list[EncodedReply]:
        """All replies, each once."""
        kinds = (self.pairs, self.rankings, self.unpaired, self.rollouts)
        items: Iterator[Item] = (
            item for kind in kinds for side in (kind.train, kind.held_out) for item in side
        )
        return list(dict.fromkeys(reply for item in items for reply in item.replies))

    def held_out(self) -> list[Any]:
        """All items that judge."""
        kinds = (self.pairs, self.rankings, self.unpaired, self.rollouts, self.prompts)
        return [item for kind in kinds for item in kind.held_out]


ITEMS_OF = {
    "preferences": "pairs",
    "rankings": "rankings",
    "unpaired": "unpaired",
    "rollouts": "rollouts",
    "prompts": "prompts",
}
"""A data file's field in TrainConfig -> its items' field in Examples, also a method's word for them."""


def load_examples(config: TrainConfig, policy: Policy, read: ReadColumns | None = None) -> Examples:
    """Reads, encodes and splits the rows that the configuration names. Without a file of rollouts, the
    replies of the other files serve. read: columns of the prompts that are to come along.

    Raises:
        DataError: rows that cannot be read, or too few prompts to hold some out.
        PolicyError: the tokenizer cannot render the rows.
    """
    files, config = files_of(config), replace(config, rows=rows_of(config, policy))
    items = {
        ITEMS_OF[name]: load_items(name, path, config, policy, mismatched=_needs_mismatch(config), read=read)
        for name, path in files.items()
    }
    if "rollouts" not in items:
        items["rollouts"] = [RolloutItem(reply) for reply in _own_replies(items)]
    held_out = held_out_prompts(
        [prompt_of(i) for kind in items.values() for i in kind], config.held_out, config.seed
    )
    splits = {kind: _split(some, held_out) for kind, some in items.items()}
    for kind, split in splits.items():
        for side in ("train", "held_out"):
            if items[kind] and not getattr(split, side):
                raise DataError(
                    f"{', '.join(map(str, files.values()))}: no {side.replace('_', ' ')} {kind} with "
                    f"held_out={config.held_out}: give rows with more different prompts, or another share"
                )
    return Examples(**splits)


def files_of(config: TrainConfig) -> dict[str, Path]:
    """The data files by the configuration's names for them."""
    return {name: path for name in ROW_FILES if (path := getattr(config, name)) is not None}


def rows_of(config: TrainConfig, policy: Policy) -> Form:
    """As what the run reads prompts that are strings. Raises PolicyError or DataError as form_of."""
    return form_of(policy.tokenizer, config.rows, files_of(config).values())


def _own_replies(items: Mapping[str, Sequence[Any]]) -> dict[EncodedReply, None]:
    """Replies to the prompts that they were given to, each once."""
    labelled = [item.reply for item in items.get("unpaired", ())]
    others = (item.replies for kind, some in items.items() if kind != "unpaired" for item in some)
    return dict.fromkeys([*(reply for replies in others for reply in replies), *labelled])


def held_out_prompts(
    prompts: Sequence[tuple[int, ...]], share: float, seed: int
) -> frozenset[tuple[int, ...]]:
    """The ⌈share · n⌉ prompts of n different ones that come first by a hash of prompt and seed."""

    def rank(prompt: tuple[int, ...]) -> bytes:
        return hashlib.sha256(repr((seed, prompt)).encode()).digest()

    different = sorted(set(prompts), key=rank)
    return frozenset(different[: math.ceil(share * len(different))])


def prompt_of(item: Any) -> tuple[int, ...]:
    """The token ids of an item's prompt."""
    return item.prompt_ids if isinstance(item, PromptItem) else item.replies[0].prompt_ids


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
        if sampled is not None and max(sampled.token_ids) >= self._vocab_size:
            raise DataError(f"token id {max(sampled.token_ids)} is not in the policy's vocabulary")
        return self._replies.encode(prompt, text, sampled)

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
        return RolloutItem(reply, row.reward, row.token_rewards, row.departure)

    def prompt(self, row: PromptRow) -> PromptItem:
        return PromptItem(row.prompt, self._replies.prompt_ids(row.prompt), row.columns)


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
    """The items of a file of rows of one of ROW_FILES' kinds. mismatched: those of unpaired rows also get a
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
    items, bad = encode_rows(rows, encoder)
    if bad and (limits.on_bad_rows == "refuse" or not items):
        raise DataError(f"{path}: {len(bad)} bad rows, first {bad[0]}: mend them or skip bad rows")
    if bad:
        logger.warning("%s: skipped %d bad rows, first %s", path, len(bad), bad[0])
    encoder.notes.tell(logger, path)
    limit = max_length(limits, policy)
    fitting = [item for item in items if num_tokens(item) <= limit]
    if not fitting:
        raise DataError(f"{path}: every row is longer than {_limit_name(limits, limit)}: raise it")
    if len(fitting) < len(items):
        num, name = len(items) - len(fitting), _limit_name(limits, limit)
        logger.warning("%s: left out %d rows longer than %s", path, num, name)
    return _mismatched(path, fitting, limit) if kind == "unpaired" and mismatched else fitting


def encode_rows(rows: Sequence[Any], encoder: RowEncoder) -> tuple[list[Any], list[str]]:
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


def _needs_mismatch(config: TrainConfig) -> bool:
    return "advantage" in config.parts and config.advantage.loss in UNPAIRED


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


def _split(items: Sequence[Any], held_out: frozenset[tuple[int, ...]]) -> Split[Any]:
    return Split(
        tuple(item for item in items if prompt_of(item) not in held_out),
        tuple(item for item in items if prompt_of(item) in held_out),
    )
