"""A check that nothing asks the device for a value, on any device."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from trimtab.server.engine.decode_graphs import HostWaitError, NoHostWaits


@contextmanager
def no_host_wait() -> Iterator[None]:
    """Raise where an op would make the host wait: on CUDA as torch sees it, elsewhere by its name."""
    if torch.cuda.is_available():
        torch.cuda.set_sync_debug_mode("error")
        try:
            yield
        finally:
            torch.cuda.set_sync_debug_mode("default")
    else:
        try:
            with NoHostWaits():  # type: ignore[no-untyped-call]
                yield
        except HostWaitError as error:
            raise AssertionError(f"waits for the device: {error}") from error
