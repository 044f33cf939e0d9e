"""Threads of torch: keeps them away from the cores that the C++ backend's pool runs on."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext

import torch

SMALL = 10**9  # parameters


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


def threads_to_try(num_parameters: int) -> AbstractContextManager[None]:
    """Within, a model is run over a few tokens. A small one on one thread: several take as long at best, and
    many times that where another process has one of their cores, since each operation waits for the slowest.
    """
    return one_torch_thread() if num_parameters < SMALL else nullcontext()
