"""Compilations of Triton kernels: tells a listener what was compiled, and what the cache on disk held."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from trimtab.kernels.dispatch import triton


@dataclass(frozen=True, slots=True)
class Compilation:
    """One program on its first launch in this process. seconds: that it took. is_cached: read from disk."""

    kernel: str
    seconds: float
    is_cached: bool


def listen(listener: Callable[[Compilation], None] | None) -> None:
    """Call the listener for every program from now on, in the thread that launches it; None for nobody.

    Where Triton is not installed there is nothing to hear.
    """
    if triton is None:
        return
    if listener is None:
        triton.knobs.compilation.listener = None
        return

    def hear(*, src: Any, times: Any, cache_hit: bool, **more: Any) -> None:
        listener(Compilation(src.name, times.total / 1e6, cache_hit))

    triton.knobs.compilation.listener = hear
