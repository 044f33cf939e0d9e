"""Inner half of the heads' advantages, and their values: check against float64, times beside their floor."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from functools import partial

import torch
from torch import Tensor
from torch.nn import functional as F

from benchmarks.gpu.case import FEW, FIRST, REST, Case
from benchmarks.gpu.findings import Findings
from benchmarks.gpu.inputs import KernelSizes, Source, dtype_name
from benchmarks.gpu.launches import ROWS, Launch, LaunchShape
from benchmarks.gpu.machine import Machine
from benchmarks.gpu.oracle import require_invariance
from benchmarks.gpu.rotation import Job, measure
from trimtab.kernels.value_adapter import value_adapter

ACTIVATIONS = ("silu", "identity", "silu")
# Of outputs with a standard deviation of about 1; matrix units keep fewer bits of a sum than fp32's.
ERRORS = {torch.float32: 2e-5, torch.float16: 1e-4, torch.bfloat16: 1e-4}


class _Batch:
    """Three heads; rows that use some of them, and a block of rows that does not use the second."""

    def __init__(
        self, machine: Machine, num_rows: int, hidden: int, rank: int, dtype: torch.dtype, tied: bool
    ) -> None:
        source = Source(machine.device, seed=num_rows)
        self.backend = machine.backend
        self.h = source.normal(num_rows, hidden, dtype=dtype)
        self.weights = source.cycle((1.0, 0.0, -0.5, 2.0, 0.0), 3 * num_rows).view(num_rows, 3)
        self.weights[: num_rows // 2, 1] = 0
        self.down = source.normal(3, rank, hidden, scale=hidden**-0.5, dtype=dtype)
        self.up = source.normal(3, hidden, rank, scale=rank**-0.5, dtype=dtype) if tied else None
        self.value_weight = source.normal(3, hidden, scale=hidden**-0.5)
        self.value_bias = source.normal(3)

    def run(self, rows: Tensor) -> dict[str, Tensor]:
        columns, values = value_adapter(
            self.h[rows], self.weights[rows], self.down, self.up, ACTIVATIONS, self.value_weight,
            self.value_bias, backend=self.backend,
        )  # fmt: skip
        assert values is not None
        return {"columns": columns, "values": values}

    def exact(self) -> dict[str, Tensor]:
        h = self.h.double()
        inner = []
        for head, activation in enumerate(ACTIVATIONS):
            product = h @ self.down[head].double().T
            product = F.silu(product) if activation == "silu" else product
            inner.append(self.weights[:, head, None].double() * product)
        if self.up is None:
            columns = torch.cat(inner, 1)
        else:
            columns = torch.stack([a @ up.double().T for a, up in zip(inner, self.up, strict=True)]).sum(0)
        return {"columns": columns, "values": h @ self.value_weight.double().T + self.value_bias}


def check_value_adapter(machine: Machine, sizes: KernelSizes, findings: Findings) -> None:
    for dtype, tied in itertools.product(sizes.dtypes, (False, True)):
        name = f"{dtype_name(dtype)}, {'tied' if tied else 'low-rank'}"
        for hidden, rank in sizes.adapter_shapes:
            with findings.attempt(f"{name}, d {hidden}, r {rank}"):
                _check(findings, machine, sizes, (hidden, rank), dtype, tied, name)


def _check(
    findings: Findings,
    machine: Machine,
    sizes: KernelSizes,
    shape: tuple[int, int],
    dtype: torch.dtype,
    tied: bool,
    name: str,
) -> None:
    most = max(sizes.batch_sizes)
    batch = _Batch(machine, most, *shape, dtype, tied)
    exact = batch.exact()
    for field, found in batch.run(torch.arange(most, device=machine.device)).items():
        findings.require(f"{name}: {field}", (found - exact[field]).abs(), ERRORS[dtype])
    require_invariance(findings, name, machine, batch.run, most, sizes.batch_sizes)


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


def launches(shape: LaunchShape) -> Iterator[Launch]:
    for tied, values, activation in itertools.product((False, True), (False, True), ("silu", "identity")):
        run = partial(_launch, shape, tied, values, activation)
        form = f"{'tied' if tied else 'low-rank'}, {activation}{', values' if values else ''}"
        yield Launch(f"value_adapter {form}, {shape.num_heads} heads, {shape.name}", run)


def _launch(shape: LaunchShape, tied: bool, values: bool, activation: str) -> object:
    heads, rank, hidden, dtype = shape.num_heads, shape.rank, shape.hidden, shape.dtype
    return value_adapter(
        torch.empty(ROWS, hidden, dtype=dtype), torch.empty(ROWS, heads),
        torch.empty(heads, rank, hidden, dtype=dtype),
        torch.empty(heads, hidden, rank, dtype=dtype) if tied else None, (activation,) * heads,
        torch.empty(heads, hidden) if values else None, torch.empty(heads) if values else None,
        backend="triton",
    )  # fmt: skip


CASES = {
    "value_adapter": Case("check", check_value_adapter, 20, FIRST),
    "value_adapter, times": Case("benchmark", bench_value_adapter, 20, FEW),
    "value_adapter, every type and shape": Case("check", check_value_adapter, 40, turn="afterwards"),
    "value_adapter, times of other rows": Case("benchmark", bench_value_adapter, 20, REST, "afterwards"),
}
