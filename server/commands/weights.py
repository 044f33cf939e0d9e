"""Heads with weights as one writes them in a terminal: `kind=1,concise=0.5`."""

from __future__ import annotations

from trimtab.server.commands.errors import UserError


def parse_weights(text: str) -> dict[str, float]:
    """Weights by head; a name alone weighs 1. Raises UserError for a weight that is no number."""
    pairs = (entry.partition("=") for entry in text.split(",") if entry.strip())
    return {name.strip(): parse_number(weight or "1") for name, _, weight in pairs}


def parse_number(text: str) -> float:
    """Raises UserError for what is none."""
    try:
        return float(text)
    except ValueError:
        raise UserError(f"{text!r} is no number; write for example 0.5") from None
