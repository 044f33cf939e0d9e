"""Steps of a scheduler as the engine takes them, with made-up tokens in the place of draws."""

from __future__ import annotations

from trimtab.server.engine.scheduler import Purpose, Scheduler, Step


def take_step(scheduler: Scheduler) -> Step:
    """Schedule and account for one step; every drawing row draws, and who can draw no more is finished."""
    step = scheduler.schedule()
    scheduler.advance(step)
    for row in step.rows:
        if row.purpose is Purpose.DRAW:
            row.lane.tokens.append(len(row.lane.tokens) % 7)
            row.lane.num_inflight -= 1
            if not row.choice.can_draw:
                scheduler.finish(row.choice)
    return step
