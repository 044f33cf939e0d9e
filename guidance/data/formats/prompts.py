"""Prompts under their published names: with an input, what was said before, and the system's message."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from trimtab.guidance.data.formats.exchange import Turns
from trimtab.guidance.data.formats.names import INPUTS, PROMPTS, SYSTEMS, find, items
from trimtab.guidance.data.formats.read import ReadRow
from trimtab.guidance.data.formats.turns import as_turns, is_transcript, is_turns, transcript_prompt
from trimtab.guidance.errors import DataError


def prompt_column(row: Mapping[str, Any]) -> str | None:
    """Where the prompt stands; None where nothing or several columns might be it."""
    found, values = find(row, PROMPTS), dict(items(row))
    if "instruction" in found and set(found) <= {"instruction", "history", *INPUTS}:
        return "instruction"
    if len(found) != 1:
        return None
    value = text_of(values[found[0]])
    return found[0] if isinstance(value, str) or is_turns(value) else None


def read_prompt(row: ReadRow, as_text: bool) -> str | Turns:
    """The prompt with its input, what was said before, and the system's message. Raises DataError."""
    column = prompt_column(row)
    if column is None:
        found = ", ".join(find(row, PROMPTS))
        raise DataError(f"prompt may be {found}" if found else "prompt is missing")
    systems = find(row, SYSTEMS)
    system = row[systems[0]] if systems else None
    prompt = as_prompt(row[column], column, as_text=as_text)
    if column != "instruction":
        return as_prompt(prompt, column, system, as_text=as_text)
    beside = [str(row[name]) for name in find(row, INPUTS) if row[name]]
    if isinstance(prompt, str):
        prompt = "\n\n".join([prompt, *beside])
    return as_prompt(_with_history(row, prompt), column, system, as_text=as_text)


def _with_history(row: ReadRow, prompt: str | Turns) -> str | Turns:
    """`history` holds what was said before as pairs of a question and its answer."""
    history = row.get("history") or []
    if not history:
        return prompt
    if not isinstance(history, list) or not all(isinstance(one, list) and len(one) == 2 for one in history):
        raise DataError(f"history must be a list of [question, answer], got {str(history)[:40]!r}")
    said = [
        {"role": role, "content": text}
        for pair in history
        for role, text in zip(("user", "assistant"), pair, strict=True)
    ]
    return [*said, *([{"role": "user", "content": prompt}] if isinstance(prompt, str) else prompt)]


def text_of(value: Any) -> Any:
    """What a nested object such as {"full_text": …} holds; anything else is as it is."""
    if isinstance(value, Mapping):
        found = [name for name in ("full_text", "text", "content", "post", "value") if name in value]
        return value[found[0]] if found else value
    return value


def as_prompt(value: Any, name: str, system: Any = None, *, as_text: bool = False) -> str | Turns:
    """A string, or turns where it is a conversation, a transcript, or comes with a system's message.

    as_text: transcripts stay as they are. Raises DataError that names the column.
    """
    value = text_of(value)
    if is_turns(value):
        prompt: str | Turns = as_turns(value, name)
    elif not isinstance(value, str):
        raise DataError(f"{name} must be a string or a list of turns, got {str(value)[:40]!r}")
    else:
        prompt = transcript_prompt(value, name) if is_transcript(value) and not as_text else value
    if not system:
        return prompt
    turns = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else prompt
    return [{"role": "system", "content": system}, *turns]
