"""Prefixes of prompts: remembers where each was read last, so that its keys and values are used again."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Collection, Iterator, Sequence
from typing import Generic, TypeVar

Place = TypeVar("Place")


class PrefixMemory(Generic[Place]):
    """The last place of every prefix of whole blocks of tokens. block: tokens. most: prefixes that are
    remembered; those that were of no use for longest are forgotten first."""

    def __init__(self, block: int = 64, most: int = 2**16) -> None:
        self._block, self._most = block, most
        self._places: OrderedDict[int, Place] = OrderedDict()

    def remember(self, tokens: Sequence[int], place: Place, salt: str = "") -> None:
        """They are read there now. salt: only prompts of the same one share prefixes."""
        for key in self._keys(tokens, salt):
            self._places[key] = place
            self._places.move_to_end(key)
        while len(self._places) > self._most:
            self._places.popitem(last=False)

    def find(self, tokens: Sequence[int], places: Collection[Place], salt: str = "") -> Place | None:
        """Of these places the one where the longest of their prefixes was read; None where none was."""
        best = None
        for key in self._keys(tokens, salt):
            place = self._places.get(key)
            best = place if place in places else best
        return best

    def _keys(self, tokens: Sequence[int], salt: str) -> Iterator[int]:
        key = hash(salt)
        for start in range(0, len(tokens) - self._block + 1, self._block):
            key = hash((key, *tokens[start : start + self._block]))
            yield key
