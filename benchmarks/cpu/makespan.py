"""Seconds from the first arrival to the last reply, when requests arrive at twice the engine's capacity."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from benchmarks.cpu.hugging_face import GuidedGenerate
from trimtab.server.engine.engine import Engine
from trimtab.server.engine.request import ChoiceDone, Guidance, Request, SamplingParams


@dataclass(frozen=True, slots=True)
class Arrival:
    """at: seconds after the start."""

    at: float
    prompt: tuple[int, ...]
    num_new_tokens: int


def draw_arrivals(rng: np.random.Generator, num_requests: int, rate: float, vocab_size: int) -> list[Arrival]:
    """Poisson arrivals at `rate` per second, prompts of 8…128 and replies of 16…128 tokens."""
    times = (
        np.cumsum(rng.exponential(1 / rate, num_requests)) if np.isfinite(rate) else np.zeros(num_requests)
    )
    return [
        Arrival(
            float(at),
            tuple(rng.integers(2, vocab_size, int(rng.integers(8, 129))).tolist()),
            int(rng.integers(16, 129)),
        )
        for at in times
    ]


def ours(engine: Engine, arrivals: Sequence[Arrival], guidance: Guidance) -> float:
    start = time.perf_counter()
    num_added = num_done = 0
    while num_done < len(arrivals):
        now = time.perf_counter() - start
        while num_added < len(arrivals) and arrivals[num_added].at <= now:
            arrival = arrivals[num_added]
            sampling = SamplingParams(max_tokens=arrival.num_new_tokens, ignore_eos=True)
            engine.add(Request(f"makespan-{num_added}", arrival.prompt, sampling, guidance))
            num_added += 1
        if engine.has_work:
            num_done += sum(isinstance(event, ChoiceDone) for event in engine.step())
        else:
            time.sleep(max(arrivals[num_added].at - now, 0))
    while engine.has_work:
        engine.step()
    return time.perf_counter() - start


def hugging_face(generate: GuidedGenerate, arrivals: Sequence[Arrival], max_batch: int) -> float:
    """One by one (max_batch 1), or in padded batches of what waits."""
    num_guided = generate.num_guided
    start = time.perf_counter()
    num_done = 0
    while num_done < len(arrivals):
        now = time.perf_counter() - start
        waiting = [arrival for arrival in arrivals[num_done:] if arrival.at <= now][:max_batch]
        if not waiting:
            time.sleep(arrivals[num_done].at - now)
            continue
        generate.run([a.prompt for a in waiting], [a.num_new_tokens for a in waiting])
        num_done += len(waiting)
    seconds = time.perf_counter() - start
    assert generate.num_guided - num_guided >= sum(a.num_new_tokens for a in arrivals), "the rule ran"
    return seconds
