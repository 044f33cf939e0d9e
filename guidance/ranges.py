"""Ranges of settings: reads a value, checks that it is a number within bounds, and quotes one that is not."""

from __future__ import annotations

from numbers import Integral, Real


def is_integer_in(value: object, low: int, high: int | None = None) -> bool:
    """No bool is an integer."""
    is_integer = isinstance(value, Integral) and not isinstance(value, bool)
    return is_integer and low <= value and (high is None or value <= high)  # type: ignore[operator]


def is_number_in(value: object, low: float, high: float) -> bool:
    """nan is in no range, and no bool is a number."""
    is_number = isinstance(value, Real) and not isinstance(value, bool)
    return is_number and low <= value <= high  # type: ignore[operator]


def read_setting(text: str) -> int | float | str:
    """A value as it is written on a command line: a number where it is one."""
    for number in (int, float):
        try:
            return number(text)
        except ValueError:
            continue
    return text


def shown(value: object) -> str:
    """A value as an error quotes it: in a line, whatever its length."""
    if isinstance(value, int) and abs(value) >= 10**40:  # of more than 4300 digits Python writes none
        return f"an integer of about {int(value.bit_length() * 0.30103) + 1} digits"
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}…"
