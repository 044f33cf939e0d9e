"""JSON files of others: reads them within bounds, and says in one line where they are at fault."""

from __future__ import annotations

import json
import math
import re
from pathlib import Path
from typing import Any

from trimtab.guidance.errors import DataError, printable

MAX_BYTES = 1 << 20
MAX_DEPTH = 16
MAX_DIGITS = 40  # of an integer; Python itself reads 4300, in quadratic time
_MAX_SHOWN = 80
_MARKS = re.compile(r'"(?:[^"\\]|\\.)*+"?|[][{}]', re.DOTALL)  # a string without an end goes to the end


def read_json(path: Path) -> Any:
    """What the file holds. Raises OSError, and ValueError for no UTF-8, too many bytes, and as parse_json."""
    with path.open("rb") as file:
        data = file.read(MAX_BYTES + 1)
    if len(data) > MAX_BYTES:
        raise ValueError(f"has more than {MAX_BYTES} bytes")
    try:
        return parse_json(data.decode())
    except UnicodeDecodeError:
        raise ValueError("is no UTF-8 text") from None


def load_json(path: Path) -> Any:
    """What a file of any size holds, as parse_json. Raises DataError, one line, where that cannot be read."""
    try:
        return parse_json(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DataError(f"{path}: cannot be read as JSON ({error})") from error


def parse_json(text: str) -> Any:
    """NaN, infinity, and as infinity what is beyond every number, are read, for whoever knows the key to
    refuse. Raises ValueError, one line, which names the key: for no JSON, a key twice, nesting too deep."""
    _check_depth(text)
    try:
        return json.loads(text, object_pairs_hook=_once, parse_int=_bounded)
    except json.JSONDecodeError as error:
        raise ValueError(f"not valid JSON ({printable(str(error))})") from None


def shown(value: object) -> str:
    """A value that was read, in so few characters that a line holds it."""
    text = repr(value)
    return printable(text if len(text) <= _MAX_SHOWN else f"{text[: _MAX_SHOWN - 1]}…")


def shown_key(key: str) -> str:
    return printable(key if len(key) <= _MAX_SHOWN else f"{key[: _MAX_SHOWN - 1]}…")


def _check_depth(text: str) -> None:
    """Before a recursive reader comes to it."""
    path: list[str] = []  # the string last read at each depth: the key, where it is an object's
    for mark in _MARKS.finditer(text):
        if mark[0] in ("{", "["):
            path.append("")
            if len(path) > MAX_DEPTH:
                where = ".".join(key for key in path[:4] if key)
                raise ValueError(f"{shown_key(where) or 'the file'}: nested more than {MAX_DEPTH} deep")
        elif mark[0] in ("}", "]"):
            del path[-1:]
        elif path:
            path[-1] = mark[0].strip('"')


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    built: dict[str, Any] = {}
    for key, value in pairs:
        if key in built:
            raise ValueError(f"{shown_key(key)}: is given twice; give it once")
        built[key] = value
    return built


def _bounded(digits: str) -> int | float:
    if len(digits) <= MAX_DIGITS:
        number = int(digits)
        return number if abs(number) < 2**63 else float(number)  # as what reads it has no larger ones
    return -math.inf if digits.startswith("-") else math.inf
