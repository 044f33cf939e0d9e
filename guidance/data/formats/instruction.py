"""Instruction formats: read a task and its answers under their published names: Alpaca, GSM8K, Orca."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from trimtab.guidance.data.formats import comparison, conversation, replies, transcript
from trimtab.guidance.data.formats.exchange import Exchange, RatedReply, Turns
from trimtab.guidance.data.formats.names import (
    LABELS,
    REPLIES,
    SCORES,
    SYSTEMS,
    as_label,
    as_score,
    find,
    items,
)
from trimtab.guidance.data.formats.pairs import is_conversation_pair, margin_of, pair_columns, score_columns
from trimtab.guidance.data.formats.prompts import prompt_column, read_prompt
from trimtab.guidance.data.formats.read import ReadRow
from trimtab.guidance.data.formats.turns import has_from, is_turn, is_turns, reply_turns
from trimtab.guidance.errors import DataError

_TRL = {"prompt", "chosen", "rejected", "completion", "label", "reward"}
_OTHERS = (comparison, replies, transcript)


def looks_like_alpaca(row: Mapping[str, Any]) -> bool:
    """`instruction`, perhaps with an input."""
    return prompt_column(row) == "instruction" and not _is_other(row)


def looks_like_question(row: Mapping[str, Any]) -> bool:
    """A prompt under another name than ours or with columns beside it that TRL's rows do not have."""
    column = prompt_column(row)
    if column in (None, "instruction") or _is_other(row):
        return False
    values, pair = dict(items(row)), pair_columns(row)
    # Rows of our own columns with one more are ours, so that a misspelt column is told.
    named = {column, *(pair or ()), *find(row, (*SYSTEMS, *REPLIES, *LABELS)), *(score_columns(row) or ())}
    if pair is not None and any(is_turn(values[name]) or has_from(values[name]) for name in pair):
        return True
    return bool(named - _TRL) or has_from(values[str(column)])


def _is_other(row: Mapping[str, Any]) -> bool:
    pair = pair_columns(row)
    if pair is not None and is_conversation_pair(row, pair):
        return True
    is_talk = conversation.looks_like_messages(row) or conversation.looks_like_sharegpt(row)
    return is_talk or any(other.looks_like(row) for other in _OTHERS)


def read(row: ReadRow, as_text: bool) -> Exchange:
    """Raises DataError or TieError."""
    prompt = read_prompt(row, as_text)
    pair = _pair(row)
    if pair is not None:
        return Exchange(prompt, tuple(map(RatedReply, pair)), is_ordered=True, margin=margin_of(row))
    columns = find(row, REPLIES)
    if not columns or not isinstance(row.peek()[columns[0]], str):
        return Exchange(prompt)
    if len(columns) > 1:
        raise DataError(f"has several replies, {', '.join(columns)}: say which is the completion")
    labels, scores = find(row, LABELS), find(row, SCORES)
    is_good = as_label(row[labels[0]], labels[0]) if labels else None
    score = as_score(row[scores[0]], scores[0]) if scores else None
    return Exchange(prompt, (RatedReply(row[columns[0]], score, is_good),))


def _pair(row: ReadRow) -> tuple[str | Turns, str | Turns] | None:
    """The better and the worse reply; a list of two under one name has them in this order."""
    pair = pair_columns(row)
    if pair is not None:
        chosen, rejected = (_reply(row[name], name) for name in pair)
        return chosen, rejected
    both = row.peek().get("output")
    if isinstance(both, list) and len(both) == 2 and all(isinstance(one, str) for one in both):
        return row["output"][0], row["output"][1]
    return None


def _reply(value: Any, name: str) -> str | Turns:
    return reply_turns(value, name) if is_turn(value) or is_turns(value) else value
