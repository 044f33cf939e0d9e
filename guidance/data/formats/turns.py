"""Turns of a conversation under the names that data sets give them, as {role, content}."""

from __future__ import annotations

import ast
import json
import re
from typing import Any

from trimtab.guidance.data.formats.exchange import Turns
from trimtab.guidance.errors import DataError

ROLES = {
    **dict.fromkeys(("user", "human", "prompter", "usr", "instruction", "question"), "user"),
    **dict.fromkeys(
        ("assistant", "gpt", "chatgpt", "bot", "model", "bard", "bing", "ai", "gpt4"), "assistant"
    ),
    **dict.fromkeys(("system", "sys"), "system"),
    **dict.fromkeys(("tool", "observation", "function_response"), "tool"),
}
"""Who speaks, in small letters, by the names in use."""
_SPEAKER, _TEXT = ("role", "from", "speaker"), ("content", "value", "text")
_TRANSCRIPT = re.compile(r"(?:^|\n\n)(Human|Assistant|System):")
_LINES = re.compile(r"(?:^|\n)(Human|Assistant|System):")
_HEADINGS = re.compile(r"(?:^|\n*)### (Human|Assistant|System):")
_BEGINNINGS = re.compile(r"\s*(?:Human:|System:|### Human:|### System:)")


def is_turns(value: Any) -> bool:
    """A list of turns, however they are spelt, or JSON of one."""
    value = _loaded(value)
    return isinstance(value, list) and bool(value) and all(map(is_turn, value))


def is_turn(value: Any) -> bool:
    """One turn: who speaks, and what."""
    return isinstance(value, dict) and all(
        any(name in value for name in names) for names in (_SPEAKER, _TEXT)
    )


def has_from(value: Any) -> bool:
    """Turns in ShareGPT's spelling, {from, value}."""
    return is_turns(value) and "from" in _loaded(value)[0]


def as_turns(value: Any, name: str) -> Turns:
    """Turns as {role, content}, with what other keys they have. Raises DataError that names the column."""
    value = _loaded(value)
    if is_turn(value):
        value = [value]
    if not is_turns(value):
        raise DataError(f"{name} must be a list of turns, got {str(value)[:40]!r}")
    return [_turn(item) for item in value]


def reply_turns(value: Any, name: str) -> Turns:
    """As as_turns; a string is the assistant's."""
    loaded = _loaded(value)
    if isinstance(loaded, str):
        return [{"role": "assistant", "content": loaded}]
    return as_turns(loaded, name)


def is_transcript(value: Any) -> bool:
    """Text that begins with a speaker's name, `Human:`, and goes on so."""
    return isinstance(value, str) and bool(_BEGINNINGS.match(value))


def transcript_turns(text: str, name: str) -> Turns:
    """A transcript split at its speakers, each turn stripped; turns of one speaker in a row are one.

    An assistant's name with nothing after it, at the end of a prompt, is no turn.

    Raises DataError that names the column.
    """
    before, *pieces = _speakers(text).split(text.lstrip())
    if before.strip() or not pieces:
        raise DataError(f"{name} begins with {text[:40]!r}, want Human: or Assistant: at its start")
    turns: Turns = []
    for speaker, words in zip(pieces[::2], pieces[1::2], strict=True):
        role, content = ROLES[speaker.lower()], words.strip()
        if turns and turns[-1]["role"] == role:
            turns[-1]["content"] += f"\n\n{content}"
        else:
            turns.append({"role": role, "content": content})
    return turns


def transcript_prompt(text: str, name: str) -> Turns:
    """The turns of a prompt: without the assistant's name that awaits a reply. Raises as transcript_turns."""
    turns = transcript_turns(text, name)
    is_open = turns[-1] == {"role": "assistant", "content": ""}
    return turns[:-1] if is_open else turns


def _speakers(text: str) -> re.Pattern[str]:
    """Where turns begin: after an empty line, or, where there is none before an answer, on a line each."""
    if text.lstrip().startswith("###"):
        return _HEADINGS
    return _TRANSCRIPT if "\n\nAssistant:" in text else _LINES


def split_text(chosen: str, rejected: str) -> tuple[str, tuple[str, str]]:
    """Two transcripts as text: up to the last "Assistant:" that they share, and what follows in each.

    Raises DataError where that is not one turn.
    """
    end, speakers = 0, _speakers(chosen)
    for turn in speakers.finditer(chosen):
        if chosen[: turn.end()] != rejected[: turn.end()]:
            break
        end = turn.end() if turn[1] == "Assistant" else end
    if end == 0:
        raise DataError("chosen and rejected share no turn")
    replies = chosen[end:], rejected[end:]
    if any(turn[1] != "Assistant" for reply in replies for turn in speakers.finditer(reply)):
        raise DataError("chosen and rejected differ in more than the assistant's last turn")
    return chosen[:end], replies


def split_text_reply(text: str) -> tuple[str, str]:
    """A transcript as text, up to its last "Assistant:", and what follows: "" where the human spoke last."""
    turns = list(_speakers(text).finditer(text))
    if not turns or turns[-1][1] != "Assistant":
        return text, ""
    return text[: turns[-1].end()], text[turns[-1].end() :]


def split_reply(turns: Turns) -> tuple[Turns, Turns]:
    """The conversation before the assistant's last turn, and that turn; () where the user spoke last."""
    return (turns[:-1], turns[-1:]) if turns[-1]["role"] == "assistant" else (turns, [])


def _turn(item: dict[str, Any]) -> dict[str, Any]:
    """Keys that are null are those of other turns in the same Parquet column."""
    speaker, text = (next(name for name in names if name in item) for names in (_SPEAKER, _TEXT))
    who = item[speaker]
    others = {key: value for key, value in item.items() if key not in (speaker, text) and value is not None}
    return {"role": ROLES.get(str(who).lower(), who), "content": item[text], **others}


def _loaded(value: Any) -> Any:
    """What text that is a list of objects holds: tables keep turns as JSON, pandas as Python spells them."""
    if not isinstance(value, str) or not value.lstrip().startswith(("[{", '{"', "{'")):
        return value
    for load in (json.loads, ast.literal_eval):
        try:
            loaded = load(value)
        except (ValueError, SyntaxError, RecursionError, MemoryError):
            continue
        if is_turn(loaded) or (isinstance(loaded, list) and loaded and all(map(is_turn, loaded))):
            return loaded
    return value
