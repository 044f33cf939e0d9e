"""Columns of a row, one by one: each is what it should be, or an error names it."""

from __future__ import annotations

import math
from typing import Any

from trimtab.guidance.encoding import Sampled
from trimtab.guidance.errors import DataError
from trimtab.guidance.message import Message, Prompt

Row = dict[str, Any]
_ROLES = ("system", "user", "assistant")


def column(row: Row, name: str) -> Any:
    """Raises DataError where the row has no such column, or null."""
    if row.get(name) is None:
        raise DataError(f"{name} is missing")
    return row[name]


def list_column(row: Row, name: str) -> list[Any]:
    """Raises DataError where it is missing or no list."""
    value = column(row, name)
    if not isinstance(value, list):
        raise DataError(f"{name} must be a list, got {str(value)[:40]!r}")
    return value


def number_column(row: Row, name: str) -> float | None:
    """None where the row does not say. Raises DataError where it is no finite number."""
    return None if row.get(name) is None else finite(row[name], name)


def finite(value: Any, name: str) -> float:
    """Raises DataError that names the column and the value."""
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    try:
        number = float(value) if is_number else math.nan
    except OverflowError:  # JSON's whole numbers have any length
        number = math.inf
    if not math.isfinite(number):
        raise DataError(f"{name} must hold finite numbers, got {str(value)[:40]}")
    return number


def sampled_column(row: Row, prefix: str = "") -> Sampled | None:
    """What {prefix}token_ids and {prefix}is_cut say; None without them. Raises DataError that names one."""
    ids, is_cut = row.get(f"{prefix}token_ids"), row.get(f"{prefix}is_cut")
    if ids is None:
        if is_cut is not None:
            raise DataError(f"{prefix}is_cut needs {prefix}token_ids")
        return None
    return as_sampled(ids, False if is_cut is None else is_cut, prefix)


def as_sampled(ids: Any, is_cut: Any, prefix: str) -> Sampled:
    """Raises DataError that names the column of the two which is wrong."""
    is_list = isinstance(ids, list) and all(isinstance(i, int) and i >= 0 for i in ids)
    if not is_list or not ids:
        raise DataError(f"{prefix}token_ids must be a list of at least one token id")
    if not isinstance(is_cut, bool):
        raise DataError(f"{prefix}is_cut must be true or false, got {is_cut!r}")
    return Sampled(tuple(ids), is_cut)


def as_prompt(value: Any) -> Prompt:
    """A string, or messages of which the last is not the assistant's. Raises DataError."""
    if isinstance(value, str):
        return value
    messages = as_messages(value, "prompt")
    if messages[-1].role == "assistant":
        raise DataError("prompt ends with a message of the assistant: move it into the reply")
    return messages


def as_messages(value: Any, name: str) -> tuple[Message, ...]:
    """Raises DataError that names the column and what in it is no message."""
    if not isinstance(value, list) or not value:
        raise DataError(f"{name} must be a string or a list of messages, got {str(value)[:40]!r}")
    messages = []
    for item in value:
        is_message = isinstance(item, dict) and isinstance(item.get("content"), str)
        if not is_message or item.get("role") not in _ROLES:
            raise DataError(f"{name} holds {str(item)[:60]!r}, want a role and content as a string")
        messages.append(Message(item["role"], item["content"]))
    return tuple(messages)


def as_reply(value: Any, name: str, sampled: Sampled | None = None) -> str:
    """The text of a reply. An empty one is a mistake, unless tokens say that it was sampled so.

    Raises DataError that names the column.
    """
    if not isinstance(value, str):
        messages = as_messages(value, name)
        if len(messages) != 1 or messages[0].role != "assistant":
            raise DataError(f"{name} must be one message of the assistant when prompt is given")
        value = messages[0].content
    if not value.strip() and sampled is None:
        raise DataError(f"{name} is {'white space only' if value else 'empty'}")
    return str(value)
