"""Rows of data files, parsed and checked: columns are TRL's, and those that our own rollouts add."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Any

from trimtab.guidance.data.columns import (
    Row,
    as_messages,
    as_prompt,
    as_reply,
    as_sampled,
    column,
    finite,
    list_column,
    number_column,
    sampled_column,
    without_weights,
)
from trimtab.guidance.data.formats.names import as_label
from trimtab.guidance.data.formats.turns import is_transcript, split_text
from trimtab.guidance.data.plain_rollouts import departure
from trimtab.guidance.errors import DataError, TieError
from trimtab.guidance.text.encoding import Sampled
from trimtab.guidance.text.message import Message, Prompt

_DRAWN = ("strength", "kl", "temperature", "top_p")


@dataclass(frozen=True, slots=True)
class Preference:
    """Two replies to one prompt, of which `chosen` is the better. margin: by how much its reward is to be
    higher; None where the row does not say. sampled: the replies' tokens, where the row has them."""

    prompt: Prompt
    chosen: str
    rejected: str
    margin: float | None = None
    chosen_sampled: Sampled | None = None
    rejected_sampled: Sampled | None = None


@dataclass(frozen=True, slots=True)
class Ranking:
    """Replies to one prompt. ranks: a lower one is better, equal ones are not compared."""

    prompt: Prompt
    responses: tuple[str, ...]
    ranks: tuple[float, ...]
    sampled: tuple[Sampled, ...] | None = None


@dataclass(frozen=True, slots=True)
class Unpaired:
    """A reply that was found good (label) or bad."""

    prompt: Prompt
    completion: str
    label: bool
    sampled: Sampled | None = None


@dataclass(frozen=True, slots=True)
class Rollout:
    """A reply sampled from the policy. reward: of the whole reply; token_rewards: one for every token of
    `sampled`; None where nothing has scored it. strength … top_p: how it was drawn; None where the row does
    not say."""

    prompt: Prompt
    completion: str
    sampled: Sampled | None = None
    reward: float | None = None
    token_rewards: tuple[float, ...] | None = None
    strength: float = 0.0
    kl: float | None = None
    temperature: float | None = None
    top_p: float | None = None

    @property
    def departure(self) -> str:
        """See plain_rollouts.departure."""
        return departure(**{name: getattr(self, name) for name in _DRAWN})

    @property
    def is_steered(self) -> bool:
        """Whether heads that steered are all that it departs by."""
        return bool(self.departure) and not departure(temperature=self.temperature, top_p=self.top_p)


def parse_preference(row: Row) -> Preference:
    """Without a prompt, what chosen and rejected begin with alike is the prompt.

    Raises DataError that names the column.
    """
    chosen, rejected = column(row, "chosen"), column(row, "rejected")
    sampled = sampled_column(row, "chosen_"), sampled_column(row, "rejected_")
    prompt: Prompt
    if row.get("prompt") is not None:
        replies = as_reply(chosen, "chosen", sampled[0]), as_reply(rejected, "rejected", sampled[1])
        prompt = as_prompt(row["prompt"])
    elif sampled != (None, None):
        raise DataError("prompt is missing: rows with token ids need one")
    elif isinstance(chosen, str) and isinstance(rejected, str):
        prompt, replies = _split_strings(chosen, rejected)
    else:
        prompt, replies = _split_messages(as_messages(chosen, "chosen"), as_messages(rejected, "rejected"))
    if replies[0] == replies[1]:
        raise TieError("chosen and rejected are the same")
    return Preference(prompt, *replies, number_column(row, "margin"), *sampled)


def parse_ranking(row: Row) -> Ranking:
    """Raises DataError that names the column."""
    responses, ranks = list_column(row, "responses"), list_column(row, "ranks")
    ids, is_cut = row.get("token_ids"), row.get("is_cut")
    num = len(responses)
    if num < 2:
        raise DataError(f"responses holds {num} replies: a ranking needs at least 2")
    for name, entries in (("ranks", ranks), ("token_ids", ids), ("is_cut", is_cut)):
        if entries is not None and (not isinstance(entries, list) or len(entries) != num):
            raise DataError(f"{name} must be a list of {num} entries, one for each of responses")
    sampled = None
    if ids is not None:
        cut = [False] * num if is_cut is None else is_cut
        sampled = tuple(as_sampled(i, c, "") for i, c in zip(ids, cut, strict=True))
    texts = tuple(
        as_reply(text, "responses", sampled[i] if sampled else None) for i, text in enumerate(responses)
    )
    numbers = tuple(finite(rank, "ranks") for rank in ranks)
    if len(set(numbers)) == 1:
        raise TieError("ranks are all the same: no reply is better than another")
    return Ranking(as_prompt(column(row, "prompt")), texts, numbers, sampled)


def parse_unpaired(row: Row) -> Unpaired:
    """Raises DataError that names the column."""
    label, sampled = column(row, "label"), sampled_column(row)
    completion = as_reply(column(row, "completion"), "completion", sampled)
    return Unpaired(as_prompt(column(row, "prompt")), completion, as_label(label, "label"), sampled)


def parse_rollout(row: Row) -> Rollout:
    """Raises DataError that names the column."""
    sampled, per_token = sampled_column(row), row.get("token_rewards")
    rewards = None
    if per_token is not None:
        if sampled is None:
            raise DataError("token_rewards need token_ids, which tell the tokens")
        rewards = tuple(finite(reward, "token_rewards") for reward in list_column(row, "token_rewards"))
        if len(rewards) != len(sampled.token_ids):
            raise DataError(f"token_rewards holds {len(rewards)} for {len(sampled.token_ids)} token_ids")
    return Rollout(
        as_prompt(column(row, "prompt")),
        as_reply(column(row, "completion"), "completion", sampled),
        sampled,
        number_column(row, "reward"),
        rewards,
        number_column(row, "strength") or 0.0,
        *(number_column(row, name) for name in _DRAWN[1:]),
    )


def parse_prompt(row: Row) -> Prompt:
    """Raises DataError that names the column."""
    return as_prompt(column(row, "prompt"))


@dataclass(frozen=True, slots=True)
class ReadColumns:
    """Which columns beside the prompt a reader asks for. reader: its name. needed: must be there; optional:
    may be; takes_all: whatever is there."""

    reader: str = ""
    needed: tuple[str, ...] = ()
    optional: tuple[str, ...] = ()
    takes_all: bool = False

    def check(self, where: object, there: Collection[str]) -> None:
        """Raises DataError that names the columns that are not there."""
        missing = [name for name in self.needed if name not in there]
        if missing:
            known = ", ".join(sorted(there)) or "none"
            raise DataError(
                f"{where}: {self.reader} reads the column {', '.join(missing)}, which is not there; columns "
                f"beside the prompt are {known}"
            )

    def also(self, other: ReadColumns) -> ReadColumns:
        """What both read together."""
        return ReadColumns(
            " and ".join(filter(None, (self.reader, other.reader))),
            (*self.needed, *other.needed),
            (*self.optional, *other.optional),
            self.takes_all or other.takes_all,
        )

    def of(self, columns: Mapping[str, Any]) -> dict[str, Any]:
        """What it is given of a row's columns."""
        names = columns if self.takes_all else (*self.needed, *self.optional)
        return {name: columns[name] for name in names if name in columns}


@dataclass(frozen=True, slots=True)
class RowKind:
    """columns: those that must be there, optional: those that may be; any other is extra."""

    parse: Callable[[Row], Any]
    columns: tuple[str, ...]
    optional: tuple[str, ...] = ()


_TOKENS = ("token_ids", "is_cut")
_ORIGIN = ("prompt_id", "sample", "seed", "columns")  # of our own samples: not read, and no mistake

ROW_KINDS: dict[str, RowKind] = {
    "preferences": RowKind(
        parse_preference,
        ("chosen", "rejected"),
        ("prompt", "margin", *(f"{side}_{name}" for side in ("chosen", "rejected") for name in _TOKENS)),
    ),
    "rankings": RowKind(parse_ranking, ("prompt", "responses", "ranks"), _TOKENS),
    "unpaired": RowKind(parse_unpaired, ("prompt", "completion", "label"), _TOKENS),
    "rollouts": RowKind(
        parse_rollout, ("prompt", "completion"), (*_TOKENS, *_ORIGIN, *_DRAWN, "reward", "token_rewards")
    ),
    "prompts": RowKind(parse_prompt, ("prompt",)),
}
"""Kinds of data files, named as the flags that take them."""


def _split_strings(chosen: str, rejected: str) -> tuple[str, tuple[str, str]]:
    """The prompt is what both begin with, up to the start of a word; of transcripts, to that of a turn."""
    if is_transcript(chosen) and is_transcript(rejected):
        prompt, replies = split_text(chosen, rejected)
        return prompt, (as_reply(replies[0], "chosen"), as_reply(replies[1], "rejected"))
    shared = 0
    while shared < min(len(chosen), len(rejected)) and chosen[shared] == rejected[shared]:
        shared += 1
    while shared > 0 and not chosen[shared - 1].isspace():
        shared -= 1
    while shared > 0 and chosen[shared - 1].isspace():
        shared -= 1
    if shared == 0:
        raise DataError("prompt is missing, and chosen and rejected begin with nothing in common")
    return chosen[:shared], (as_reply(chosen[shared:], "chosen"), as_reply(rejected[shared:], "rejected"))


def _split_messages(
    chosen: tuple[Message, ...], rejected: tuple[Message, ...]
) -> tuple[tuple[Message, ...], tuple[str, str]]:
    if chosen[:-1] != rejected[:-1] or len(chosen) < 2:
        raise DataError("prompt is missing, and chosen and rejected differ in more than the last message")
    replies = as_reply([chosen[-1].to_dict()], "chosen"), as_reply([rejected[-1].to_dict()], "rejected")
    return without_weights(chosen[:-1]), replies
