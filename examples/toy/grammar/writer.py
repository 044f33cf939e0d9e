"""Writer of a small template language: `[a|b]` is one of the two, `{name}` one of that rule's, nested."""

from __future__ import annotations

import random
import re
from collections.abc import Mapping

Rules = Mapping[str, tuple[str, ...]]

_CHOICE = re.compile(r"\[([^\[\]]*)\]")
_NAME = re.compile(r"\{(\w+)\}")


def listed(text: str) -> tuple[str, ...]:
    """`"a, b, c"` as a tuple of names."""
    return tuple(name.strip() for name in text.split(","))


def chosen(template: str, rng: random.Random) -> str:
    """The template with every `[a|b]` decided."""
    while choice := _CHOICE.search(template):
        template = template[: choice.start()] + rng.choice(choice[1].split("|")) + template[choice.end() :]
    return template


class Writer:
    """Expands templates by rules. A rule's alternatives are dealt like cards: none comes again before all
    have been used, so that one reply, which takes one writer, does not repeat itself."""

    def __init__(self, rng: random.Random, rules: Rules) -> None:
        self._rng = rng
        self._rules = rules
        self._decks: dict[str, list[str]] = {}

    def write(self, template: str, **slots: str) -> str:
        """The template expanded; `slots` are one-off rules. KeyError names an unknown rule."""

        def expand(name: re.Match[str]) -> str:
            return self.write(slots[name[1]] if name[1] in slots else self._deal(name[1]), **slots)

        return _NAME.sub(expand, chosen(template, self._rng))

    def sentence(self, template: str, **slots: str) -> str:
        """The same with a capital and a full stop."""
        text = self.write(template, **slots)
        return f"{text[0].upper()}{text[1:]}."

    def _deal(self, name: str) -> str:
        deck = self._decks.get(name)
        if not deck:
            deck = self._decks[name] = list(self._rules[name])
            self._rng.shuffle(deck)
        return deck.pop()
