"""Preemptions: notes which choices an engine's scheduler preempts."""

from __future__ import annotations

from collections.abc import Callable

from trimtab.server.engine.engine import Engine
from trimtab.server.engine.lane import Choice
from trimtab.server.engine.scheduler import Step


def watch_preemptions(
    engine: Engine, counts: Callable[[Choice], object] = lambda choice: True
) -> list[Choice]:
    """Fills with the choices that are preempted from now on. counts: whether one does, as it is then."""
    preempted: list[Choice] = []
    schedule = engine.scheduler.schedule

    def watched() -> Step:
        step = schedule()
        preempted.extend(choice for choice in step.preempted if counts(choice))
        return step

    engine.scheduler.schedule = watched  # type: ignore[method-assign]
    return preempted
