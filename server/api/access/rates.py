"""Rates: how many requests of a key are under way, and how many it may still begin."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field


@dataclass(slots=True)
class _Account:
    running: int = 0
    credit: float = 0.0
    at: float = 0.0


@dataclass(slots=True)
class Rates:
    """Of every key: at most so many requests at once, and so many a minute on average, of which a minute's
    worth may come together. None for no limit."""

    max_running: int | None = None
    per_minute: float | None = None
    clock: Callable[[], float] = time.monotonic
    _accounts: dict[str, _Account] = field(default_factory=dict)

    def begin(self, key: str) -> float | None:
        """None where the request may begin, which `end` has to follow; else the seconds to wait."""
        account = self._accounts.setdefault(key, _Account(credit=self.per_minute or 0.0, at=self.clock()))
        if self.max_running is not None and account.running >= self.max_running:
            return 1.0
        if self.per_minute is not None:
            now = self.clock()
            earned = (now - account.at) * self.per_minute / 60
            account.credit, account.at = min(account.credit + earned, max(self.per_minute, 1.0)), now
            if account.credit < 1:
                return (1 - account.credit) * 60 / self.per_minute
            account.credit -= 1
        account.running += 1
        return None

    def end(self, key: str) -> None:
        self._accounts[key].running -= 1
