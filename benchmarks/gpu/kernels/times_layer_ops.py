"""The ops of fused decoder layers, against their bytes and against the torch ops that they replace."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from benchmarks.gpu.findings import Findings
from benchmarks.gpu.inputs import Source
from benchmarks.gpu.kernels.layer_ops import EPS, rotary
from benchmarks.gpu.kernels.rotation import Job, measure
from benchmarks.gpu.machine import Machine
from benchmarks.gpu.sizes import KernelSizes, dtype_name
from trimtab.kernels.rms_norm import rms_norm
from trimtab.kernels.rope_store import rope_store
from trimtab.kernels.silu_mul import silu_mul


def bench_layer_ops(machine: Machine, sizes: KernelSizes, findings: Findings) -> None:
    shape, dtype = sizes.attention, sizes.dtypes[0]
    heads = (shape.heads + 2 * shape.kv_heads) * shape.dim
    jobs: dict[str, tuple[Callable[[Machine, KernelSizes, int, int], Job], int]] = {
        "rms_norm of a sum": (_norm, 4 * sizes.hidden),
        "silu_mul": (_gate, 3 * sizes.intermediate),
        "rope_store": (_rope, 2 * heads),
    }
    for num_rows in sizes.adapter_rows:
        for op, (make, width) in jobs.items():

            def job(copy: int, num_rows: int = num_rows, make: Callable[..., Job] = make) -> Job:
                return make(machine, sizes, num_rows, copy)

            measure(
                findings, machine, sizes.repeats, job, op=op,
                shape=f"d={sizes.hidden} {dtype_name(dtype)}", rows=num_rows,
                num_bytes=num_rows * width * dtype.itemsize,
            )  # fmt: skip


def _norm(machine: Machine, sizes: KernelSizes, num_rows: int, seed: int) -> Job:
    source, dtype = Source(machine.device, seed), sizes.dtypes[0]
    x, residual = (source.normal(num_rows, sizes.hidden, dtype=dtype) for _ in range(2))
    weight = source.normal(sizes.hidden, dtype=dtype)

    def by_torch() -> Tensor:
        return torch.nn.functional.rms_norm(x + residual, weight.shape, weight, EPS)

    return Job(lambda: rms_norm(x, weight, EPS, residual, backend=machine.backend), {"torch": by_torch})


def _gate(machine: Machine, sizes: KernelSizes, num_rows: int, seed: int) -> Job:
    gate_up = Source(machine.device, seed).normal(num_rows, 2 * sizes.intermediate, dtype=sizes.dtypes[0])
    return Job(
        lambda: silu_mul(gate_up, backend=machine.backend),
        {"torch": lambda: silu_mul(gate_up, backend="reference")},
    )


def _rope(machine: Machine, sizes: KernelSizes, num_rows: int, seed: int) -> Job:
    source, shape, dtype = Source(machine.device, seed), sizes.attention, sizes.dtypes[0]
    qkv = source.normal(num_rows, (shape.heads + 2 * shape.kv_heads) * shape.dim, dtype=dtype)
    num_blocks = 2 * -(-num_rows // sizes.block_size)
    keys, values = (
        source.normal(num_blocks, sizes.block_size, shape.kv_heads, shape.dim, dtype=dtype) for _ in range(2)
    )
    slots = source.permutation(num_blocks * sizes.block_size)[:num_rows]
    tables = rotary(source, num_rows, shape.dim, dtype)

    def run(backend: str) -> Tensor:
        return rope_store(qkv, *tables, slots, keys, values, backend=backend)

    return Job(lambda: run(machine.backend), {"torch": lambda: run("reference")})
