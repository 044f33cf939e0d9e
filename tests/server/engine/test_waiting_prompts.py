"""A prompt that waits for blocks is matched against the prefix cache when that can help, and not before."""

from __future__ import annotations

import random

import pytest
from engine_steps import take_step

from trimtab.server.engine.block_manager import BlockManager
from trimtab.server.engine.lane import Choice, Lane, Phase
from trimtab.server.engine.request import Request, SamplingParams
from trimtab.server.engine.scheduler import Scheduler

SIZE = 4


class Counting(BlockManager):
    num_matches = 0

    def match_prefix(self, lane: Lane, max_tokens: int | None = None) -> None:
        self.num_matches += 1
        super().match_prefix(lane, max_tokens)


def choice(name: str, prompt: list[int], max_tokens: int) -> Choice:
    sampling = SamplingParams(max_tokens=max_tokens)
    return Choice(Request(name, tuple(prompt), sampling), 0, (Lane(list(prompt)),))


def run(scheduler: Scheduler) -> list[str]:
    """One step as the engine takes it. Returns whose rows it had."""
    step = take_step(scheduler)
    return [row.choice.request.request_id for row in step.rows]


@pytest.fixture
def waiting() -> tuple[Scheduler, Counting]:
    """A prompt of 34 blocks of which 24 are cached, where 8 are free, beside two replies that grow."""
    blocks = Counting(39, SIZE)
    scheduler = Scheduler(blocks, 8, 200)
    prompt = [i % 97 for i in range(24 * SIZE)]
    scheduler.add([choice("first", prompt, 1)])
    run(scheduler)
    for i in range(2):
        scheduler.add([choice(f"d{i}", [200 + i] * (3 * SIZE - 1), 40)])
    run(scheduler)
    scheduler.add([choice("waits", [*prompt, *[7] * 10 * SIZE], 4)])
    return scheduler, blocks


def test_a_waiting_prompt_is_not_matched_anew_at_every_step(waiting: tuple[Scheduler, Counting]):
    scheduler, blocks = waiting
    before, steps = blocks.num_matches, 0
    while "waits" not in run(scheduler):
        steps += 1
        assert steps < 200
    assert steps > 20, "it does wait"
    assert blocks.num_matches - before <= 3


def test_a_waiting_prompt_begins_as_soon_as_enough_blocks_are_free(waiting: tuple[Scheduler, Counting]):
    scheduler, _ = waiting
    run(scheduler)
    run(scheduler)
    victim = next(c for c in scheduler.running if c.request.request_id == "d0")
    scheduler.finish(victim)
    assert "waits" in run(scheduler)


@pytest.mark.parametrize("seed", range(15))
def test_what_is_remembered_of_a_refusal_changes_no_schedule(seed: int):
    """The same requests with and without: every step has the same rows."""
    traces = []
    for remembers in (True, False):
        rng = random.Random(seed)
        scheduler = Scheduler(BlockManager(rng.randint(30, 60), SIZE), 6, rng.randint(8, 40))
        if not remembers:
            scheduler._is_still_refused = lambda *_: False  # type: ignore[method-assign]
        shared = [rng.randrange(50) for _ in range(40)]
        pending = [
            choice(str(i), shared[: rng.randint(0, 40)] + [i] * rng.randint(1, 30), rng.randint(1, 25))
            for i in range(25)
        ]
        choices, trace = list(pending), []
        for _ in range(3000):
            if pending and rng.random() < 0.2:
                scheduler.add([pending.pop()])
            if rng.random() < 0.03:
                victim = rng.choice(choices)
                if victim not in pending and victim.phase is not Phase.DONE:
                    scheduler.finish(victim)
            trace.append(run(scheduler))
            if not pending and not scheduler:
                break
        assert all(each.phase is Phase.DONE for each in choices)
        traces.append(trace)
    assert traces[0] == traces[1]
