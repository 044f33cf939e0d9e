"""Host memory that a step frees, kept for the next step and not given back to the system."""

from __future__ import annotations

import ctypes

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD, M_ARENA_MAX = -1, -3, -8  # of malloc.h
KEPT_BYTES = 2**28


def keep_freed_memory() -> None:
    """Let this process keep up to KEPT_BYTES that it has freed.

    Logits take megabytes, which glibc maps anew for every step and unmaps after it: thousands of page faults,
    each of which fills a page with zeros. Changes no result; does nothing with another C library. Threads
    that begin afterwards share the main thread's memory: one of their own would keep 64 MB at most.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(M_TRIM_THRESHOLD, KEPT_BYTES)
        mallopt(M_MMAP_THRESHOLD, KEPT_BYTES)
        mallopt(M_ARENA_MAX, 1)
