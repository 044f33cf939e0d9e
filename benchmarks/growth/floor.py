"""The least time a decode step can take: its bytes at the memory's rate, its arithmetic at a product's."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

import torch

from benchmarks.gpu.engine.subject import Subject
from benchmarks.gpu.timing import Repeats, copy_bandwidth, time_calls
from benchmarks.growth.sizes import GrowthSizes

REPEATS = Repeats(3, 15)


@dataclass(frozen=True, slots=True)
class Rates:
    """bytes_per_second: of a copy or of a matrix-vector product, whichever moved more. flops_per_second: of
    a large product in the model's dtype. Both measured in the run whose floors they give."""

    bytes_per_second: float
    flops_per_second: float


@dataclass(frozen=True, slots=True)
class Floor:
    """Milliseconds of one decode step."""

    memory: float
    arithmetic: float

    @property
    def milliseconds(self) -> float:
        return max(self.memory, self.arithmetic)


def measure_rates(device: torch.device, sizes: GrowthSizes) -> Rates:
    n, dtype = sizes.product, sizes.dtype
    a, b = (torch.randn(n, n, device=device, dtype=dtype) for _ in range(2))
    product = time_calls(device, [partial(torch.matmul, a, b)], REPEATS)
    width = 4096
    matrix = torch.zeros(sizes.bandwidth_bytes // (width * dtype.itemsize), width, device=device, dtype=dtype)
    vector = torch.zeros(width, device=device, dtype=dtype)
    reading = time_calls(device, [partial(torch.mv, matrix, vector)], REPEATS)
    read = matrix.numel() * matrix.itemsize / (1e-6 * reading.median)
    return Rates(
        max(read, copy_bandwidth(device, sizes.bandwidth_bytes, REPEATS)),
        2 * n**3 / (1e-6 * product.median),
    )


def step_floor(rates: Rates, subject: Subject, num_rows: int, context: int, heads: tuple[str, ...]) -> Floor:
    """heads: the names of those in use, all of one size. Each is read once; a row multiplies by one."""
    size = subject.size
    head_bytes = sum(subject.head_bytes(name) for name in heads)
    num_bytes = subject.weight_bytes + head_bytes + subject.cache_bytes(num_rows, context)
    one_head = head_bytes / max(len(heads), 1)
    products = 2 * num_rows * (subject.weight_bytes + one_head) / subject.model.dtype.itemsize
    attention = 4 * num_rows * context * size.hidden * size.layers
    return Floor(
        1e3 * num_bytes / rates.bytes_per_second, 1e3 * (products + attention) / rates.flops_per_second
    )
