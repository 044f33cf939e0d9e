"""An epoch's wall time, and the most memory that a process held."""

from __future__ import annotations

import time
from pathlib import Path
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
    # Not getrusage's ru_maxrss: a process inherits its parent's.
    for line in Path("/proc/self/status").read_text(encoding="utf-8").splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    raise RuntimeError("/proc/self/status has no VmHWM: peak memory is read on Linux only")
