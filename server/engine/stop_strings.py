"""Stop strings: found in a text that grows, all at once, and cut from it."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Sequence


class StopStrings:
    """An automaton (Aho & Corasick 1975) over a request's stop strings: a character costs one step, however
    many there are.

    A state is the longest end of the text so far that a stop string begins with. depths: its length.
    matches: length of the longest stop string that the text ends with there, 0 for none.
    """

    def __init__(self, stop: Iterable[str]) -> None:
        self.stop = tuple(stop)
        self.longest = max(map(len, self.stop), default=0)
        self.depths, self.matches = [0], [0]
        self._next: list[dict[str, int]] = [{}]
        self._shorter = [0]  # the state of the next shorter end that a stop string begins with
        for text in self.stop:
            self._insert(text)
        self._link()

    def __bool__(self) -> bool:
        return bool(self.stop)

    def step(self, state: int, character: str) -> int:
        """The state after one more character."""
        while (reached := self._next[state].get(character)) is None:
            if not state:
                return 0
            state = self._shorter[state]
        return reached

    def ends(self, text: str) -> bool:
        """Whether a stop string is the end of the text."""
        state = 0
        for character in text[-self.longest :]:
            state = self.step(state, character)
        return self.matches[state] > 0

    def _insert(self, text: str) -> None:
        state = 0
        for character in text:
            if character not in self._next[state]:
                self._next[state][character] = len(self._next)
                self._next.append({})
                self._shorter.append(0)
                self.depths.append(self.depths[state] + 1)
                self.matches.append(0)
            state = self._next[state][character]
        self.matches[state] = len(text)

    def _link(self) -> None:
        """Breadth first, so that every shorter state is linked before the longer ones."""
        waiting = deque(self._next[0].values())
        while waiting:
            state = waiting.popleft()
            self.matches[state] = self.matches[state] or self.matches[self._shorter[state]]
            for character, longer in self._next[state].items():
                self._shorter[longer] = self.step(self._shorter[state], character)
                waiting.append(longer)


class StopMatcher:
    """Cuts one choice's text at the first stop string, holding back any end that may become one.

    Where several end at the same character, the longest is cut.
    """

    def __init__(self, strings: StopStrings | Sequence[str]) -> None:
        self._strings = strings if isinstance(strings, StopStrings) else StopStrings(strings)
        self._state, self._held = 0, ""

    def push(self, text: str) -> tuple[str, bool]:
        """(text that is safe to emit, whether a stop string was met)."""
        strings = self._strings
        if not strings:
            return text, False
        self._held += text
        for end in range(len(self._held) - len(text) + 1, len(self._held) + 1):
            self._state = strings.step(self._state, self._held[end - 1])
            if strings.matches[self._state]:
                safe, self._held = self._held[: end - strings.matches[self._state]], ""
                return safe, True
        cut = len(self._held) - strings.depths[self._state]
        safe, self._held = self._held[:cut], self._held[cut:]
        return safe, False

    def would_stop(self, text: str) -> bool:
        """Whether a stop string ends where this text would, of which all but the last character was tried."""
        return bool(self._strings) and self._strings.ends(self._held + text)

    def flush(self) -> str:
        """What was held back, once no more text can come."""
        held, self._held = self._held, ""
        return held
