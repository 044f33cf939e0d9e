"""How much of the time a device works, from a profile."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from typing import Any

import torch

Interval = tuple[float, float]
NAME_LENGTH = 70  # of a kernel: templates go on for hundreds of characters


def busy_share(intervals: Iterable[Interval]) -> float:
    """Of the time from the first beginning to the last end, the share within any interval; NaN for none."""
    busy, end, first = 0.0, 0.0, None
    for start, stop in sorted(intervals):
        if first is None:
            first = end = start
        busy += max(stop - max(start, end), 0.0)
        end = max(end, stop)
    return busy / (end - first) if first is not None and end > first else float("nan")


def device_intervals(profiler: Any, device: torch.device) -> list[Interval]:
    """Begin and end of all that ran on the device, in microseconds."""
    return [
        (event.time_range.start, event.time_range.end)
        for event in profiler.events()
        if event.device_type.name == device.type.upper() and not event.is_user_annotation
    ]


def kernels_of_step(
    profiler: Any, device: torch.device, num_steps: int, most: int = 40
) -> list[dict[str, float | int | str]]:
    """What ran on the device in a step, by kernel: launches, and microseconds in all, the longest first."""
    launches: Counter[str] = Counter()
    micros: Counter[str] = Counter()
    for event in profiler.events():
        if event.device_type.name == device.type.upper() and not event.is_user_annotation:
            name = event.name[:NAME_LENGTH]
            launches[name] += 1
            micros[name] += event.time_range.end - event.time_range.start
    return [
        {
            "kernel": name,
            "launches": round(launches[name] / num_steps, 2),
            "microseconds": round(total / num_steps, 2),
        }
        for name, total in micros.most_common(most)
    ]
