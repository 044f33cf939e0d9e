"""Verdicts between two replies: a name, a number, or a grade in words such as "A slightly better"."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

from trimtab.guidance.errors import DataError

MUCH, BETTER, SLIGHTLY = 3.0, 2.0, 1.0
"""Margins of a grade in words: HelpSteer's numbers for the same words."""
SIGNED = ("preference_strength", "overall_preference")
"""Columns whose number is below 0 where the first reply is better, and the larger the clearer."""
_FIRST_IS_ONE = ("labels",)
"""Columns that hold 1 where the first of two lettered replies is better, and 0 where the second is: SHP's."""
_TIE = re.compile(
    r"\b(ties?|tied|equal\w*|same|neither|both|bothbad|draw|no preference|indifferent|comparable|none)\b|=|≈",
    re.IGNORECASE,
)
_MUCH = re.compile(r"\b(much|significantly|far|strongly|clearly|a lot|way)\b|>>|<<", re.IGNORECASE)
_SLIGHTLY = re.compile(r"\b(slight\w*|a bit|marginally|barely|a little|somewhat)\b|[<>]", re.IGNORECASE)
_WORSE = re.compile(r"\bworse\b|<", re.IGNORECASE)
_BETTER = re.compile(r"\b(better|best|prefer\w*|wins?|winner|superior|stronger)\b", re.IGNORECASE)
_WHO = r"(?:response|answer|assistant|model|option|reply|output|summary|candidate|conversation|chatbot)s?"


@dataclass(frozen=True, slots=True)
class Verdict:
    """better: 0 for the first reply, 1 for the second, None for a tie. margin: by how much, where told."""

    better: int | None
    margin: float | None = None


def read_verdict(value: Any, column: str, names: tuple[str, str]) -> Verdict:
    """names: the columns of the replies, such as answer_0 and answer_1. Raises DataError."""
    number = _as_number(value)
    if number is not None and column in SIGNED:
        return Verdict(None if number == 0 else int(number > 0), abs(number) or None)
    keys = names[0][-1].lower(), names[1][-1].lower()
    if number is not None:
        return Verdict(_numbered(number, column, names))
    if isinstance(value, str) and value.strip():
        return _in_words(value.strip(" \n\t[]()*\"'."), keys, names, column)
    raise _unclear(value, column, names)


def _as_number(value: Any) -> float | None:
    try:
        return None if isinstance(value, bool) else float(value)
    except (TypeError, ValueError, OverflowError):
        return None


def _numbered(number: float, column: str, names: tuple[str, str]) -> int:
    keys = names[0][-1], names[1][-1]
    if column in _FIRST_IS_ONE and number in (0, 1) and keys[0].isalpha():
        return int(number == 0)
    for side, key in enumerate(keys):
        if key.isdigit() and number == int(key):
            return side
    raise _unclear(number, column, names)


def _in_words(text: str, keys: tuple[str, str], names: tuple[str, str], column: str) -> Verdict:
    for side in (0, 1):
        if text.lower() in (
            keys[side],
            names[side].lower(),
            *(f"model_{key}" for key in keys[side : side + 1]),
        ):
            return Verdict(side)
    if _TIE.search(text):
        return Verdict(None)
    better = _side(text, keys)
    if better is None:
        raise _unclear(text, column, names)
    side = 1 - better if _WORSE.search(text) else better
    return Verdict(side, _margin(text))


def _side(text: str, keys: tuple[str, str]) -> int | None:
    """Which reply a grade is about: named at its beginning, after a word such as "response", in capitals."""
    either = "|".join((*keys, "first", "second"))
    patterns = (
        rf"^(?:{_WHO}[ _]?)?({either})\b",
        rf"\b{_WHO}[ _]?({either})\b",
        rf"\bthe ({'first|second'})\b",
        rf"\b({'|'.join(key.upper() for key in keys)})\b",
    )
    for number, pattern in enumerate(patterns):
        found = re.search(pattern, text, 0 if number == len(patterns) - 1 else re.IGNORECASE)
        if found:
            return (*keys, "first", "second").index(found[1].lower()) % 2
    return None


def _margin(text: str) -> float | None:
    for pattern, margin in ((_MUCH, MUCH), (_SLIGHTLY, SLIGHTLY), (_BETTER, BETTER)):
        if pattern.search(text):
            return margin
    return BETTER if _WORSE.search(text) else None


def _unclear(value: Any, column: str, names: tuple[str, str]) -> DataError:
    return DataError(f"{column} is {value!r}: it names neither {names[0]} nor {names[1]}, nor a tie")
