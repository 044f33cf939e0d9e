"""Names that published data sets give to prompts, replies and judgements, and the columns they stand in."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any

from trimtab.guidance.errors import DataError

PROMPTS = ("prompt", "instruction", "question", "query", "input", "post", "history", "context", "info")
INPUTS = ("input", "context")
"""What an instruction is about, beside it."""
SYSTEMS = ("system", "system_prompt", "system_message", "custom_system_prompt")
REPLIES = ("output", "response", "answer", "completion", "reply", "generation", "summary")
PAIRS = (
    ("chosen", "rejected"),
    ("chosen_response", "rejected_response"),
    ("response_chosen", "response_rejected"),
    ("chosen_text", "rejected_text"),
    ("chosen_answer", "rejected_answer"),
    ("response_j", "response_k"),
    ("accepted", "rejected"),
)
"""Columns of the better and of the worse reply."""
LABELS = ("label", "kto_tag", "is_correct", "is_safe", "is_good", "correct", "thumbs_up")
SCORES = ("score", "overall_score", "rating", "overall_rating", "reward", "overall", "grade", "avg_rating")
PAIR_SCORES = tuple(
    (f"{before}chosen{after}", f"{before}rejected{after}")
    for before, after in [
        *((f"{name}_", "") for name in ("score", "rating", "reward", "grade")),
        *(("", f"_{name}") for name in ("score", "rating", "reward", "avg_rating", "overall_score")),
        ("", "-rating"),
    ]
)
"""Columns of the two replies' scores."""


def find(row: Mapping[str, Any], names: Iterable[str]) -> list[str]:
    """Those of the names that the row has a value for, in their order."""
    present = {name for name, value in items(row) if value is not None}
    return [name for name in names if name in present]


def items(row: Mapping[str, Any]) -> Iterable[tuple[str, Any]]:
    """Columns and values, looked at without being read: see read.ReadRow."""
    peek = getattr(row, "peek", None)
    return (row if peek is None else peek()).items()


def as_label(value: Any, name: str) -> bool:
    """True or false, also as 1 and 0. Raises DataError."""
    if value in (True, False, 1, 0):
        return bool(value)
    words = {"true": True, "false": False, "good": True, "bad": False, "yes": True, "no": False}
    words |= {"desirable": True, "undesirable": False, "1": True, "0": False}
    if isinstance(value, str) and value.lower() in words:
        return words[value.lower()]
    raise DataError(f"{name} must be true or false, got {value!r}")


def as_score(value: Any, name: str) -> float:
    """A finite number, also as text. Raises DataError."""
    try:
        number = math.nan if isinstance(value, bool) else float(value)
    except (TypeError, ValueError, OverflowError):
        number = math.nan
    if not math.isfinite(number):
        raise DataError(f"{name} must be a finite number, got {value!r}")
    return number
