"""Colours for values in standard units: from red at -2 over the terminal's middle grey to green at +2."""

from __future__ import annotations

from rich.style import Style
from rich.text import Text

LIMIT = 2.0
_BAD, _MIDDLE, _GOOD = (215, 60, 60), (150, 150, 150), (40, 170, 80)


def tint(value: float) -> Style:
    """The colour of a value; beyond ±2 the colour of ±2."""
    share = max(-1.0, min(1.0, value / LIMIT))
    end = _GOOD if share > 0 else _BAD
    channels = (round(m + abs(share) * (e - m)) for m, e in zip(_MIDDLE, end, strict=True))
    return Style(color="#" + "".join(f"{channel:02x}" for channel in channels))


def legend(head: str) -> Text:
    """What the colours say."""
    text = Text("tint: ")
    for value in (-2, -1, 0, 1, 2):
        text.append(f"■ {value:+d}  " if value else "■ 0  ", tint(value))
    return text.append(f"value of `{head}`, in standard deviations of the model's own replies")
