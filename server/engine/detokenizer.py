"""Token ids to text, one token at a time, never half a character; and stop strings."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import InitVar, dataclass, field

REPLACEMENT = "\ufffd"
MAX_CHARACTER_TOKENS = 4
NUM_CONTEXT_TOKENS = 5
Decode = Callable[[Sequence[int]], str]


@dataclass(slots=True)
class Detokenizer:
    """Decodes a growing reply. `decode` maps ids to text, special tokens left out; `context` is the end of
    the prompt.

    Text is the difference between decoding a window of recent tokens with and without the newest ones, so
    that tokenizers whose pieces depend on their neighbours (leading spaces) come out right.
    """

    decode: Decode
    context: InitVar[Sequence[int]] = ()
    _window: list[int] = field(init=False)
    _num_read: int = field(init=False)

    def __post_init__(self, context: Sequence[int]) -> None:
        self._window = list(context)
        self._num_read = len(context)

    def push(self, token_id: int) -> str:
        """The text that this token completes; empty while a character is still incomplete."""
        self._window.append(token_id)
        before = self.decode(self._window[: self._num_read])
        text = self.decode(self._window)
        num_pending = len(self._window) - self._num_read
        if text.endswith(REPLACEMENT) and num_pending < MAX_CHARACTER_TOKENS:
            return ""
        self._window = self._window[self._num_read :]
        self._num_read = len(self._window)
        return text[len(before) :]


@dataclass(slots=True)
class StopMatcher:
    """Cuts text at the first stop string, holding back any end that may become one."""

    stop: tuple[str, ...]
    _held: str = ""

    def push(self, text: str) -> tuple[str, bool]:
        """(text that is safe to emit, whether a stop string was met)."""
        if not self.stop:
            return text, False
        self._held += text
        found = [at for at in (self._held.find(stop) for stop in self.stop) if at >= 0]
        if found:
            safe, self._held = self._held[: min(found)], ""
            return safe, True
        keep = max(self._overlap(stop) for stop in self.stop)
        cut = len(self._held) - keep
        safe, self._held = self._held[:cut], self._held[cut:]
        return safe, False

    def flush(self) -> str:
        """What was held back, once no more text can come."""
        held, self._held = self._held, ""
        return held

    def _overlap(self, stop: str) -> int:
        """Length of the longest end of the held text that a stop string begins with."""
        longest = min(len(stop) - 1, len(self._held))
        return next((n for n in range(longest, 0, -1) if self._held.endswith(stop[:n])), 0)
