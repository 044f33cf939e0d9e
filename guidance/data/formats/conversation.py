"""Conversations in one column: ShareGPT's {from, value}, OpenAI's {role, content}, and what judges them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from trimtab.guidance.data.formats.exchange import Exchange, RatedReply, Turns
from trimtab.guidance.data.formats.names import LABELS, SCORES, as_label, as_score, find, items
from trimtab.guidance.data.formats.pairs import is_conversation_pair, margin_of, pair_columns
from trimtab.guidance.data.formats.read import ReadRow
from trimtab.guidance.data.formats.turns import as_turns, has_from, is_turns, reply_turns, split_reply
from trimtab.guidance.errors import DataError

COLUMNS = ("conversations", "messages", "conversation", "dialogue", "dialog", "turns")


def looks_like_sharegpt(row: Mapping[str, Any]) -> bool:
    """A conversation whose turns are {from, value}."""
    return _spelling(row) is True


def looks_like_messages(row: Mapping[str, Any]) -> bool:
    """A conversation whose turns are {role, content}."""
    return _spelling(row) is False


def _spelling(row: Mapping[str, Any]) -> bool | None:
    """Whether it is ShareGPT's; None where the row is no conversation, or a pair of two."""
    columns, pair = _columns(row), pair_columns(row)
    if not columns or (pair is not None and is_conversation_pair(row, pair)):
        return None
    return has_from(dict(items(row))[columns[0]])


def _columns(row: Mapping[str, Any]) -> list[str]:
    values = dict(items(row))
    return [name for name in find(row, COLUMNS) if is_turns(values[name])]


def read(row: ReadRow, as_text: bool) -> Exchange:
    """Raises DataError or TieError."""
    columns = _columns(row)
    if not columns:
        raise DataError(f"no column of turns: want one of {', '.join(COLUMNS)}")
    if row.get("tools"):
        raise DataError("tools are described beside the conversation, and nothing here would show them")
    turns = _with_system(row, as_turns(row[columns[0]], columns[0]))
    pair = pair_columns(row)
    if pair is not None:
        replies = tuple(RatedReply(reply_turns(row[name], name)) for name in pair)
        return Exchange(turns, replies, is_ordered=True, margin=margin_of(row))
    prompt, reply = split_reply(turns)
    if not reply or not prompt:
        return Exchange(turns)
    labels, scores = find(row, LABELS), find(row, SCORES)
    is_good = as_label(row[labels[0]], labels[0]) if labels else None
    score = as_score(row[scores[0]], scores[0]) if scores else None
    return Exchange(prompt, (RatedReply(reply, score, is_good),))


def _with_system(row: ReadRow, turns: Turns) -> Turns:
    system = row.get("system")
    if not system or turns[0]["role"] == "system":
        return turns
    return [{"role": "system", "content": system}, *turns]
