"""Timing of short calls that find their inputs cold, and of the memory that they are held against."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from benchmarks.common import Spread, spread_of

Call = Callable[[], object]
SLEEP_CYCLES_PER_SECOND = 2e9  # no shipped GPU clocks higher by much, so a sleep is not shorter than meant
MAX_HEAD_START = 0.5  # seconds
QUEUED_CALLS = 20  # ahead of the device: with two dozen kernels each, what its queue holds
MAX_COPIES = 64


@dataclass(frozen=True, slots=True)
class Repeats:
    """Calls that warm up, and calls that count."""

    warm_up: int = 25
    counted: int = 100


def num_copies(device: torch.device, bytes_per_call: float) -> int:
    """How many sets of inputs to take in turn, so that a call finds none of its own in the last cache."""
    cache = torch.cuda.get_device_properties(device).L2_cache_size if device.type == "cuda" else 0
    return min(MAX_COPIES, max(2, math.ceil(4 * cache / max(bytes_per_call, 1))))


def time_calls(device: torch.device, calls: Sequence[Call], repeats: Repeats) -> Spread:
    """Microseconds of one job; `calls` do it on different inputs and take turns.

    On CUDA between two events on the stream, the host far enough ahead for the device not to wait for it.
    """
    measure = _cuda_microseconds if device.type == "cuda" else _host_microseconds
    return spread_of(measure(calls, repeats))


def _host_microseconds(calls: Sequence[Call], repeats: Repeats) -> list[float]:
    times = []
    for i in range(repeats.warm_up + repeats.counted):
        start = time.perf_counter()
        calls[i % len(calls)]()
        times.append(1e6 * (time.perf_counter() - start))
    return times[repeats.warm_up :]


def _cuda_microseconds(calls: Sequence[Call], repeats: Repeats) -> list[float]:
    for i in range(repeats.warm_up):
        calls[i % len(calls)]()
    torch.cuda.synchronize()
    start = time.perf_counter()
    for call in calls:
        call()
    host_seconds = (time.perf_counter() - start) / len(calls)  # to launch one call, or also to wait for it
    torch.cuda.synchronize()
    events = [
        (torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True))
        for _ in range(repeats.counted)
    ]
    head_start = min(MAX_HEAD_START, 1.5 * host_seconds * QUEUED_CALLS)
    for i, (begin, end) in enumerate(events):
        if i % QUEUED_CALLS == 0:
            torch.cuda.synchronize()
            torch.cuda._sleep(int(head_start * SLEEP_CYCLES_PER_SECOND))
        begin.record()
        calls[i % len(calls)]()
        end.record()
    torch.cuda.synchronize()
    return [1e3 * begin.elapsed_time(end) for begin, end in events]


def copy_bandwidth(device: torch.device, num_bytes: int, repeats: Repeats) -> float:
    """Bytes per second, read and written, of a copy of `num_bytes`."""
    source, target = (torch.zeros(num_bytes, dtype=torch.uint8, device=device) for _ in range(2))
    calls = [lambda: target.copy_(source), lambda: source.copy_(target)]
    return 2 * num_bytes / (1e-6 * time_calls(device, calls, repeats).median)
