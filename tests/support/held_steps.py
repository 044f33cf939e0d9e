"""Steps of an engine, held back until they are let go: what is under way stays so, however quick it is."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import count

from trimtab.server.engine.engine import Engine

SECONDS = 60.0
"""After so many a step goes on by itself: a test that forgets it fails, and does not hang."""


@contextmanager
def held_steps(engine: Engine, after: int = 0) -> Iterator[threading.Event]:
    """The engine takes so many steps and begins no other until the event is set, or this is left. What is
    sent to it in the meantime is taken at its next step."""
    step, go_on, numbers = engine.step, threading.Event(), count()

    def wait_and_step():
        if next(numbers) >= after:
            go_on.wait(SECONDS)
        return step()

    engine.step = wait_and_step  # type: ignore[method-assign]
    try:
        yield go_on
    finally:
        go_on.set()
        engine.step = step  # type: ignore[method-assign]
