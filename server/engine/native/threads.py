"""Threads of torch: keeps them away from the cores that the C++ backend's pool runs on."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def one_torch_thread() -> Iterator[None]:
    """Torch's operations of the calling thread run on it alone. Its other threads wait for their next work
    busily, for milliseconds, on cores that the pool's threads want."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
