"""Copies between host and device for which neither waits: by pinned memory on a GPU, none on a CPU."""

from __future__ import annotations

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


class StaticInputs:
    """One i64 tensor on the device at a fixed address, filled anew each step in a single copy."""

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

    def fill(self, values: Sequence[int]) -> Tensor:
        """The device's view [N] of the values, valid until the next call."""
        n, at = len(values), self._next
        if self._is_cuda:
            self._copied[at].synchronize()  # long since done, unless steps were launched and never read
        self._host_arrays[at][:n] = values
        view = self.device_buffer[:n]
        if self._is_cuda:
            view.copy_(self._host_buffers[at][:n], non_blocking=True)
            self._copied[at].record()
            self._next = (at + 1) % NUM_HOST_BUFFERS
        return view


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
