"""Columns of a row, one by one: each is what it should be, or an error names it."""

from __future__ import annotations

import json
import math
from typing import Any

from trimtab.guidance.errors import DataError
from trimtab.guidance.text.encoding import Sampled
from trimtab.guidance.text.message import EXTRA_JSON, ROLES, Message, Prompt

Row = dict[str, Any]


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
        raise DataError(f"{name} must hold finite numbers, got {repr(value)[:40]}")
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
    messages = without_weights(as_messages(value, "prompt"))
    if messages[-1].role == "assistant":
        raise DataError("prompt ends with a message of the assistant: move it into the reply")
    return messages


def as_messages(value: Any, name: str) -> tuple[Message, ...]:
    """Raises DataError that names the column and what in it is no message."""
    if not isinstance(value, list) or not value:
        raise DataError(f"{name} must be a string or a list of messages, got {str(value)[:40]!r}")
    return tuple(_as_message(item, name) for item in value)


def _as_message(item: Any, name: str) -> Message:
    """Keys that are null or empty lists are not there: Parquet gives every message the keys of all."""
    if not isinstance(item, dict) or item.get("role") not in ROLES:
        raise DataError(
            f"{name} holds {str(item)[:60]!r}, want a role ({', '.join(ROLES)}) and content as a string"
        )
    extras = {key: value for key, value in item.items() if value is not None and value != []}
    if isinstance(extras.get(EXTRA_JSON), str):
        extras |= json.loads(extras.pop(EXTRA_JSON))
    role, content = extras.pop("role"), _as_text(extras.pop("content", None), name)
    if content is None and not ({"tool_calls", "function_call"} & set(extras)):
        raise DataError(f"{name} holds {str(item)[:60]!r}, which has no content")
    try:
        return Message(role, content, tuple((key, json.dumps(value)) for key, value in extras.items()))
    except (TypeError, ValueError) as error:
        raise DataError(f"{name} holds {str(item)[:60]!r}, which is no JSON ({error})") from error


def _as_text(content: Any, name: str) -> str | None:
    """A string, or OpenAI's parts of which each is a text: a line each, as the server reads them."""
    if content is None or isinstance(content, str):
        return content
    parts = content if isinstance(content, list) else [content]
    texts = []
    for part in parts:
        text = part.get("text") if isinstance(part, dict) and part.get("type") == "text" else None
        if not isinstance(text, str):
            raise DataError(f"{name} holds content {str(part)[:40]!r}, want a string or parts of type text")
        texts.append(text)
    if not texts:
        raise DataError(f"{name} holds content without a part")
    return "\n".join(texts)


def without_weights(messages: tuple[Message, ...]) -> tuple[Message, ...]:
    """A prompt's messages without `weight`, where it says what is done anyhow: nothing in a prompt is trained
    on. Raises DataError where it says otherwise."""
    for message in messages:
        weight = message.keys().get("weight", 0)
        if weight != 0:
            raise DataError(
                f"prompt has a message of weight {weight!r}: only replies are trained on, so give it 0, or "
                "make it the reply of a row of its own"
            )
    return tuple(
        Message(m.role, m.content, tuple(extra for extra in m.extras if extra[0] != "weight"))
        for m in messages
    )


def as_reply(value: Any, name: str, sampled: Sampled | None = None) -> str:
    """The text of a reply. An empty one is a mistake, unless tokens say that it was sampled so.

    Raises DataError that names the column.
    """
    if not isinstance(value, str):
        messages = as_messages(value, name)
        if len(messages) != 1:
            raise DataError(f"{name} must be one message of the assistant when prompt is given")
        value = _reply_text(messages[0], name)
    if not value.strip() and sampled is None:
        raise DataError(f"{name} is {'white space only' if value else 'empty'}")
    return str(value)


def _reply_text(message: Message, name: str) -> str:
    """What the assistant's message says. Raises DataError for another's, and for keys that nothing trains
    on."""
    if message.role != "assistant":
        raise DataError(f"{name} must be one message of the assistant, got {message.role}'s")
    keys = message.keys()
    if keys.pop("weight", 1) != 1:
        raise DataError(f"{name} has weight 0, which asks not to train on it: leave the row out")
    if keys:
        raise DataError(
            f"{name} has {', '.join(keys)}: only a reply's content is trained on; write there what the "
            "model is to say, as its chat template writes it"
        )
    return message.text
