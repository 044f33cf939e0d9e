"""The heads' inner halves and values, against their weights' bytes and against torch's products."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F

from benchmarks.gpu.findings import Findings
from benchmarks.gpu.inputs import Source
from benchmarks.gpu.kernels.rotation import Job, measure
from benchmarks.gpu.machine import Machine
from benchmarks.gpu.sizes import KernelSizes, dtype_name
from trimtab.kernels.value_adapter import value_adapter

NUM_HEADS = 3


def bench_value_adapter(machine: Machine, sizes: KernelSizes, findings: Findings) -> None:
    dtype = sizes.dtypes[0]
    for num_rows in sizes.adapter_rows:
        for form in ("low-rank", "tied"):

            def make(copy: int, num_rows: int = num_rows, tied: bool = form == "tied") -> Job:
                return _job(machine, sizes, num_rows, tied, copy)

            matrices = 2 if form == "tied" else 1
            measure(
                findings, machine, sizes.repeats, make,
                op=f"value_adapter, {form}",
                shape=f"d={sizes.hidden} r={sizes.rank} heads={NUM_HEADS} {dtype_name(dtype)}",
                rows=num_rows,
                num_bytes=matrices * NUM_HEADS * sizes.rank * sizes.hidden * dtype.itemsize,
            )  # fmt: skip


def _job(machine: Machine, sizes: KernelSizes, num_rows: int, tied: bool, seed: int) -> Job:
    source, dtype = Source(machine.device, seed), sizes.dtypes[0]
    h = source.normal(num_rows, sizes.hidden, dtype=dtype)
    weights = source.normal(num_rows, NUM_HEADS)
    down = source.normal(NUM_HEADS, sizes.rank, sizes.hidden, dtype=dtype)
    up = source.normal(NUM_HEADS, sizes.hidden, sizes.rank, dtype=dtype) if tied else None
    value_weight = source.normal(NUM_HEADS, sizes.hidden)

    def by_torch() -> list[Tensor]:
        inner = [
            F.silu(F.linear(h, part)) * weight[:, None] for part, weight in zip(down, weights.T, strict=True)
        ]
        columns = (
            inner if up is None else [F.linear(a.to(dtype), part) for a, part in zip(inner, up, strict=True)]
        )
        return [*columns, F.linear(h.float(), value_weight)]

    return Job(
        lambda: value_adapter(
            h, weights, down, up, ("silu",) * NUM_HEADS, value_weight, None, backend=machine.backend
        ),
        {"torch": by_torch},
    )
