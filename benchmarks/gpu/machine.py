"""Machine: the device a run is on, which backend its kernels use, how fast its memory is."""

from __future__ import annotations

import contextlib
import gc
import os
import warnings
from collections.abc import Callable, Hashable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

import torch

from benchmarks.common import hardware
from benchmarks.gpu.timing import Repeats, copy_bandwidth
from trimtab.kernels.dispatch import triton

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Machine:
    """backend: of our kernels. bandwidth: bytes per second of a copy, measured when the run began."""

    device: torch.device
    backend: str
    bandwidth: float
    _kept: dict[Hashable, object] = field(default_factory=dict)

    def keep(self, key: Hashable, make: Callable[[], T]) -> T:
        """What `make` makes, kept for the next case that asks by the same key; one thing at a time, since
        what is worth keeping is large."""
        if key not in self._kept:
            self.release()
            self._kept[key] = make()
        return self._kept[key]  # type: ignore[return-value]

    def release(self) -> None:
        """Give back the memory of what is kept, and what torch holds."""
        self._kept.clear()
        gc.collect()
        if self.is_cuda:
            torch.cuda.empty_cache()

    def answers(self) -> bool:
        """Whether the device still does: after a wild access it never does again in this process."""
        if self.is_cuda:
            try:
                torch.cuda.synchronize()
            except RuntimeError:
                return False
        return True

    @property
    def is_cuda(self) -> bool:
        return self.device.type == "cuda"

    def floor(self, num_bytes: float) -> float:
        """Microseconds that so much memory traffic takes."""
        return 1e6 * num_bytes / self.bandwidth

    def describe(self) -> dict[str, str | float]:
        return hardware(self.device) | {
            "backend": self.backend,
            "copy_gb_per_second": float(f"{self.bandwidth / 1e9:.4g}"),
            "triton": "" if triton is None else triton.__version__,
        }

    @contextlib.contextmanager
    def host_waits(self) -> Iterator[list[warnings.WarningMessage]]:
        """Collects a warning for every call within that makes the host wait for the device, as torch notices
        it; where the device is the host there are none. Complete once the context is left."""
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            if not self.is_cuda:
                yield []
                return
            waits: list[warnings.WarningMessage] = []
            torch.cuda.set_sync_debug_mode("warn")
            try:
                yield waits
            finally:
                torch.cuda.set_sync_debug_mode("default")
                # Not what torch says once of the mode itself.
                waits += [warning for warning in caught if "called a synchronizing" in str(warning.message)]


def process_age() -> float:
    """Seconds since this process began: what imports take on a cold machine counts, too. 0 where the system
    does not tell."""
    try:
        uptime = float(Path("/proc/uptime").read_text().split()[0])
        fields = Path("/proc/self/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return 0.0
    return max(0.0, uptime - int(fields[19]) / os.sysconf("SC_CLK_TCK"))


def missing_gpu() -> str | None:
    """Why the suite cannot run here, in one line; None where it can."""
    if not torch.cuda.is_available():
        return f"the GPU suite needs a CUDA device, and torch {torch.__version__} sees none here"
    if triton is None:
        return "the GPU suite needs triton, which is not installed here"
    if triton.knobs.runtime.interpret:
        return "TRITON_INTERPRET is set: unset it, so that kernels run on the GPU"
    return None


def open_gpu() -> Machine:
    """Raises RuntimeError where the kernels would not run on the GPU."""
    reason = missing_gpu()
    if reason is not None:
        raise RuntimeError(reason)
    device = torch.device("cuda", torch.cuda.current_device())
    return Machine(device, "triton", copy_bandwidth(device, 1 << 30, Repeats()))


def open_rehearsal() -> Machine:
    """The CPU, with Triton's kernels where its interpreter is on, and their references elsewhere."""
    interprets = triton is not None and triton.knobs.runtime.interpret
    device = torch.device("cpu")
    return Machine(
        device, "triton" if interprets else "reference", copy_bandwidth(device, 1 << 22, Repeats(1, 3))
    )
