"""Waiting line: choices in the order in which they came, and the short ones among them. No torch here."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence

from trimtab.server.engine.lane import Choice


class WaitingLine:
    """Choices that wait to run. max_short: tokens that the prompt of a short one has at most."""

    def __init__(self, max_short: int) -> None:
        self._max_short = max_short
        self._all: deque[Choice] = deque()
        self._short: deque[Choice] = deque()

    def __len__(self) -> int:
        return len(self._all)

    def __iter__(self) -> Iterator[Choice]:
        return iter(self._all)

    def __getitem__(self, i: int) -> Choice:
        return self._all[i]

    @property
    def short(self) -> Sequence[Choice]:
        """The short ones, in order."""
        return self._short

    def append(self, choice: Choice) -> None:
        self._classify(choice)
        self._all.append(choice)
        if choice.is_short:
            self._short.append(choice)

    def put_first(self, choices: Sequence[Choice]) -> None:
        """Before all that wait, in this order."""
        for choice in reversed(choices):
            self._classify(choice)
            self._all.appendleft(choice)
            if choice.is_short:
                self._short.appendleft(choice)

    def remove(self, choice: Choice) -> None:
        self._all.remove(choice)
        if choice.is_short:
            self._short.remove(choice)

    def _classify(self, choice: Choice) -> None:
        num_shared = 0 if choice.leader is None else choice.num_prompt_tokens - 1
        if choice.is_pool:
            num_shared = (len(choice.lanes) - 1) * (choice.num_prompt_tokens - 1)
        choice.is_short = sum(lane.length for lane in choice.lanes) - num_shared <= self._max_short
