"""How much of the time a device works, from a profile."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch

Interval = tuple[float, float]


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
