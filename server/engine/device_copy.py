"""Copies between host and device for which neither waits: by pinned memory on a GPU, none on a CPU."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Self

import numpy as np
import torch
from torch import Tensor

NUM_HOST_BUFFERS = 3  # more than the steps that can be in flight, so that reusing one hardly ever waits


def to_device(values: np.ndarray, device: torch.device) -> Tensor:
    """A new tensor with these values; the copy is queued behind what the device still has to do."""
    tensor = torch.from_numpy(values)
    if device.type == "cuda" and len(values):
        tensor = tensor.pin_memory()
    return tensor.to(device, non_blocking=True)


def index_tensor(values: Sequence[int], device: torch.device) -> Tensor:
    """i64[N] on the device."""
    return to_device(np.array(values, dtype=np.int64), device)


def float_tensor(values: Sequence[float], device: torch.device) -> Tensor:
    """f32[N] on the device."""
    return to_device(np.array(values, dtype=np.float32), device)


class StaticInputs:
    """One i64 tensor on the device at a fixed address, filled anew each step in a single copy.

    Each section begins at a multiple of 16 bytes, whatever the lengths of those before it: Triton compiles
    a kernel once more for a pointer that is none.
    """

    def __init__(self, capacity: int, device: torch.device) -> None:
        self.device_buffer = torch.zeros(capacity, dtype=torch.long, device=device)
        self._is_cuda = device.type == "cuda"
        if self._is_cuda:
            staging = torch.zeros(NUM_HOST_BUFFERS, capacity, dtype=torch.long, pin_memory=True)
            self._host_buffers = list(staging)
            self._copied = [torch.cuda.Event() for _ in self._host_buffers]
        else:
            self._host_buffers = [self.device_buffer]
        self._host_arrays = [buffer.numpy() for buffer in self._host_buffers]
        self._next = 0

    def fill(self, sections: Sequence[np.ndarray]) -> list[Tensor]:
        """The device's views of the sections, valid until the next call."""
        at = self._next
        if self._is_cuda:
            self._copied[at].synchronize()  # long since done, unless steps were launched and never read
        end = 0
        for section in sections:
            self._host_arrays[at][end : end + len(section)] = section
            end += aligned_length(len(section))
        if self._is_cuda:
            self.device_buffer[:end].copy_(self._host_buffers[at][:end], non_blocking=True)
            self._copied[at].record()
            self._next = (at + 1) % NUM_HOST_BUFFERS
        return self.views([len(section) for section in sections])

    def views(self, lengths: Sequence[int]) -> list[Tensor]:
        """Where `fill` puts sections of these lengths: always the same addresses."""
        starts = itertools.accumulate(map(aligned_length, lengths), initial=0)
        return [self.device_buffer[start : start + n] for start, n in zip(starts, lengths, strict=False)]


def aligned_length(num_longs: int) -> int:
    """With how many a section of so many i64 is as long as a multiple of 16 bytes."""
    return num_longs + num_longs % 2


class HostCopies:
    """Tensors of a launched step on their way to the host."""

    def __init__(self, device: torch.device) -> None:
        self._event = torch.cuda.Event() if device.type == "cuda" else None

    @property
    def are_async(self) -> bool:
        """Whether `add` copies at all: on a CPU the tensors are on the host already."""
        return self._event is not None

    def add(self, tensor: Tensor) -> Tensor:
        """The tensor on the host, to be read after `wait`."""
        return tensor if self._event is None else tensor.to("cpu", non_blocking=True)

    def seal(self) -> Self:
        """No more tensors follow."""
        if self._event is not None:
            self._event.record()
        return self

    def wait(self) -> None:
        """Block until every tensor has arrived. This is where the host waits for the device."""
        if self._event is not None:
            self._event.synchronize()
