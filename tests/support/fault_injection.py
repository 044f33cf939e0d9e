"""Faults, injected into any Python function at its call, and the functions that a piece of work calls."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from types import CodeType, FrameType
from typing import Any


@contextmanager
def calls_of(parts: tuple[str, ...]) -> Iterator[Counter[CodeType]]:
    """Counts the calls in this thread of functions whose file's path holds one of `parts`."""
    found: Counter[CodeType] = Counter()

    def note(frame: FrameType, event: str, _: Any) -> None:
        code = frame.f_code
        if event == "call" and any(part in code.co_filename for part in parts):
            found[code] += 1

    sys.setprofile(note)
    try:
        yield found
    finally:
        sys.setprofile(None)


@dataclass
class Fault:
    """Raises in this thread in place of the `at`-th call of a function, counted from 0, and once only."""

    code: CodeType
    at: int
    error: BaseException
    has_struck: bool = field(default=False, init=False)

    def __enter__(self) -> Fault:
        sys.setprofile(self._watch)
        return self

    def __exit__(self, *_: object) -> None:
        sys.setprofile(None)

    def _watch(self, frame: FrameType, event: str, _: Any) -> None:
        if event == "call" and frame.f_code is self.code:
            self.at -= 1
            if self.at < 0:
                sys.setprofile(None)
                self.has_struck = True
                raise self.error


def name_of(code: CodeType) -> str:
    return f"{code.co_filename.rsplit('/', 1)[-1]}:{code.co_qualname}"
