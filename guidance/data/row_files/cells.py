"""Cells of a table: text, but for columns of numbers and thumbs and for what is JSON by its look."""

from __future__ import annotations

import ast
import json
import re
from typing import Any

_WORDS = {"true": True, "false": False}
_NUMBERS = ("margin", "reward", "score", "rank", "rating", "grade", "strength", "preference", "kl")
_LABELS = ("label", "kto_tag", "is_", "correct")
_LISTS = ("responses", "ranks", "ids", "rewards", "answers", "completions", "outputs", "scores", "ratings")


def cell(column: str, text: str) -> Any:
    """The value of a cell; None where it is empty."""
    if not text:
        return None
    name = column.lower()
    if any(part in name for part in (*_NUMBERS, *_LABELS)) and _WORDS.get(text.strip().lower()) is not None:
        return _WORDS[text.strip().lower()]
    if text.lstrip().startswith("[") and (name.endswith(_LISTS) or re.match(r"\s*\[\s*\{", text)):
        return _listed(text)
    if any(part in name for part in _NUMBERS):
        return _number(text)
    return _listed(text) if text.lstrip().startswith(('{"', "{'")) and text.rstrip().endswith("}") else text


def _number(text: str) -> Any:
    try:
        number = float(text)
    except ValueError:
        return text
    return int(number) if re.fullmatch(r"\s*-?\d+\s*", text) else number


def _listed(text: str) -> Any:
    """JSON, or what pandas writes of a list."""
    for load in (json.loads, ast.literal_eval):
        try:
            return load(text)
        except (ValueError, SyntaxError, RecursionError, MemoryError):
            continue
    return text
