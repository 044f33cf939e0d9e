"""An epoch's wall time, and the most memory that a process held."""

from __future__ import annotations

import resource
import time
from typing import Any

import torch
from transformers import TrainerCallback


class EpochClock(TrainerCallback):  # type: ignore[misc]  # transformers has no type stubs
    """seconds: from the end of the last warm-up step to the end of the last step: data, forward, backward and
    optimiser of the steps between, and what is logged and saved on the way. cpu_seconds: the same of all
    threads together, which a busy machine changes less."""

    def __init__(self, warm_up: int) -> None:
        self._warm_up = warm_up
        self._start, self._cpu_start = 0.0, 0.0
        self.seconds, self.cpu_seconds = 0.0, 0.0

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        if state.global_step == self._warm_up:
            self._start, self._cpu_start = time.perf_counter(), time.process_time()
        self.seconds = time.perf_counter() - self._start
        self.cpu_seconds = time.process_time() - self._cpu_start


def peak_bytes(device: str) -> int:
    """On a GPU of its tensors; on a CPU of the whole process, interpreter and libraries with it."""
    if device == "cuda":
        return torch.cuda.max_memory_allocated()
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
