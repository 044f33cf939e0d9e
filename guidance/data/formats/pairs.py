"""Pairs of whole conversations, as UltraFeedback has them: what both begin with is the prompt."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from trimtab.guidance.data.formats.exchange import Exchange, RatedReply, Turns
from trimtab.guidance.data.formats.names import PAIR_SCORES, PAIRS, as_score, find, items
from trimtab.guidance.data.formats.prompts import text_of
from trimtab.guidance.data.formats.read import ReadRow
from trimtab.guidance.data.formats.turns import as_turns, is_turns
from trimtab.guidance.errors import DataError, TieError

_BESIDE = ("prompt", "messages", "system")


def pair_columns(row: Mapping[str, Any]) -> tuple[str, str] | None:
    """The columns of the better and the worse reply, if there are such."""
    return next((pair for pair in PAIRS if len(find(row, pair)) == len(pair)), None)


def looks_like(row: Mapping[str, Any]) -> bool:
    """chosen and rejected are conversations that begin with the prompt, and something stands beside them."""
    pair = pair_columns(row)
    if pair is None or not is_conversation_pair(row, pair):
        return False
    values = dict(items(row))
    spelt = all(turn.keys() <= {"role", "content"} for name in pair for turn in _list(values[name]))
    return bool(find(row, _BESIDE)) or not spelt or pair != PAIRS[0] or score_columns(row) is not None


def is_conversation_pair(row: Mapping[str, Any], pair: tuple[str, str]) -> bool:
    """Whether both are turns, and one of them has more than the reply."""
    values = dict(items(row))
    if not all(is_turns(values[name]) for name in pair):
        return False
    return any(len(turns) > 1 for turns in (as_turns(values[name], name) for name in pair))


def read(row: ReadRow, as_text: bool) -> Exchange:
    """Raises DataError or TieError."""
    pair = pair_columns(row)
    if pair is None:
        raise DataError("chosen and rejected are missing")
    chosen, rejected = (as_turns(row[name], name) for name in pair)
    prompt, replies = split_pair(chosen, rejected, pair)
    _check_prompt(row, prompt)
    return Exchange(prompt, tuple(map(RatedReply, replies)), is_ordered=True, margin=margin_of(row))


def split_pair(chosen: Turns, rejected: Turns, names: tuple[str, str]) -> tuple[Turns, tuple[Turns, Turns]]:
    """The turns that both begin with, and the assistant's turn that each ends with.

    Raises:
        DataError: they differ in more than that turn.
        TieError: they do not differ.
    """
    if chosen == rejected:
        raise TieError(f"{names[0]} and {names[1]} are the same")
    for one, other in ((chosen, rejected), (rejected, chosen)):
        if len(one) == 1 < len(other) and one[0]["role"] == "assistant" == other[-1]["role"]:
            return other[:-1], (chosen[-1:], rejected[-1:])
    shared = 0
    while shared < min(len(chosen), len(rejected)) and chosen[shared] == rejected[shared]:
        shared += 1
    replies = chosen[shared:], rejected[shared:]
    if shared == 0 or any([turn["role"] for turn in reply] != ["assistant"] for reply in replies):
        raise DataError(f"{names[0]} and {names[1]} differ in more than the assistant's last turn")
    return chosen[:shared], replies


def score_columns(row: Mapping[str, Any]) -> tuple[str, str] | None:
    """The columns of the two replies' scores, if there are such."""
    return next((pair for pair in PAIR_SCORES if len(find(row, pair)) == len(pair)), None)


def margin_of(row: ReadRow) -> float | None:
    """The row's margin, or by how much the chosen reply is scored above the rejected one; None without.

    Raises:
        TieError: the scores are the same.
        DataError: they say that the rejected one is the better.
    """
    if row.get("margin") is not None:
        return as_score(row["margin"], "margin")
    columns = score_columns(row)
    if columns is None:
        return None
    chosen, rejected = (as_score(row[name], name) for name in columns)
    if chosen == rejected:
        raise TieError(f"{columns[0]} and {columns[1]} are the same")
    if chosen < rejected:
        raise DataError(f"{columns[0]} {chosen:g} is below {columns[1]} {rejected:g}")
    return chosen - rejected


def _check_prompt(row: ReadRow, turns: Turns) -> None:
    """A prompt beside the conversations is one of their turns, or says what they do not.

    `messages` is the chosen conversation once more.
    """
    row.get("messages")
    told = [str(turn["content"]).strip() for turn in turns]
    prompt, system = text_of(row.get("prompt")), row.get("system")
    if is_turns(prompt) and as_turns(prompt, "prompt") != turns:
        raise DataError("prompt is not what chosen and rejected begin with")
    for name, said in (("prompt", prompt), ("system", system)):
        if isinstance(said, str) and said.strip() and said.strip() not in told:
            raise DataError(
                f"{name} {said[:40]!r} is not among the turns that chosen and rejected begin with"
            )


def _list(value: Any) -> Turns:
    return value if isinstance(value, list) else [{"from": value}]
