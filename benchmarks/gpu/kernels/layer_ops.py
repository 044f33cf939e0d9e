"""Ops of fused decoder layers: check against torch, rounding for rounding, and times beside their floors."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial

import torch
from torch import Tensor

from benchmarks.gpu.case import FEW, FIRST, Case
from benchmarks.gpu.findings import Findings
from benchmarks.gpu.inputs import KernelSizes, Source, dtype_name
from benchmarks.gpu.launches import BLOCK_SIZE, ROWS, Launch, LaunchShape
from benchmarks.gpu.machine import Machine
from benchmarks.gpu.oracle import require_invariance
from benchmarks.gpu.rotation import Job, measure
from trimtab.kernels.rms_norm import rms_norm
from trimtab.kernels.silu_mul import silu_mul
from trimtab.kernels.store_kv import rope_store

# Of numbers of about 1, whose last place this is: sums in another order may round the other way.
LAST_PLACE = {torch.float32: 2e-6, torch.float16: 2.0**-9, torch.bfloat16: 2.0**-6}
EPS = 1e-6


def rotary(source: Source, num_tokens: int, dim: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """cos and sin [T, D] of random angles."""
    angle = source.normal(num_tokens, dim // 2, scale=3.0).repeat(1, 2)
    return angle.cos().to(dtype), angle.sin().to(dtype)


def check_layer_ops(machine: Machine, sizes: KernelSizes, findings: Findings) -> None:
    for dtype in sizes.dtypes:
        with findings.attempt(f"rms_norm, {dtype_name(dtype)}"):
            _check_norm(findings, machine, sizes, dtype)
        with findings.attempt(f"silu_mul, {dtype_name(dtype)}"):
            _check_gate(findings, machine, sizes, dtype)
        with findings.attempt(f"rope_store, {dtype_name(dtype)}"):
            _check_rope(findings, machine, sizes, dtype)


def _check_norm(findings: Findings, machine: Machine, sizes: KernelSizes, dtype: torch.dtype) -> None:
    source, most, size = Source(machine.device), max(sizes.batch_sizes), sizes.hidden
    x, residual = (source.normal(most, size, dtype=dtype) for _ in range(2))
    weight = source.normal(size, dtype=dtype)

    def run(rows: Tensor) -> dict[str, Tensor]:
        total, normed = rms_norm(x[rows], weight, EPS, residual[rows], backend=machine.backend)
        return {
            "total": total,
            "normed": normed,
            "alone": rms_norm(x[rows], weight, EPS, backend=machine.backend)[1],
        }

    found = run(torch.arange(most, device=machine.device))
    total, normed = rms_norm(x, weight, EPS, residual, backend="reference")
    name = f"rms_norm, {dtype_name(dtype)}"
    findings.require_none(f"{name}: sums", found["total"] != total)
    for field, expected in (("normed", normed), ("alone", rms_norm(x, weight, EPS, backend="reference")[1])):
        error = (found[field] - expected).abs() / expected.abs().clamp(min=1)
        findings.require(f"{name}: {field}", error, LAST_PLACE[dtype])
    require_invariance(findings, name, machine, run, most, sizes.batch_sizes)


def _check_gate(findings: Findings, machine: Machine, sizes: KernelSizes, dtype: torch.dtype) -> None:
    gate_up = Source(machine.device).normal(
        max(sizes.batch_sizes), 2 * sizes.intermediate, scale=3.0, dtype=dtype
    )
    expected = silu_mul(gate_up, backend="reference")
    error = (silu_mul(gate_up, backend=machine.backend) - expected).abs() / expected.abs().clamp(min=1)
    findings.require(f"silu_mul, {dtype_name(dtype)}", error, LAST_PLACE[dtype])


def _check_rope(findings: Findings, machine: Machine, sizes: KernelSizes, dtype: torch.dtype) -> None:
    source, shape, num_tokens = Source(machine.device), sizes.attention, max(sizes.batch_sizes)
    qkv = source.normal(num_tokens, (shape.heads + 2 * shape.kv_heads) * shape.dim, dtype=dtype)
    num_blocks = 2 * -(-num_tokens // sizes.block_size)
    caches = [
        source.normal(num_blocks, sizes.block_size, shape.kv_heads, shape.dim, dtype=dtype) for _ in range(2)
    ]
    slots = source.permutation(num_blocks * sizes.block_size)[:num_tokens]
    tables = rotary(source, num_tokens, shape.dim, dtype)
    found, expected = ([cache.clone() for cache in caches] for _ in range(2))
    queries = rope_store(qkv, *tables, slots, found[0], found[1], backend=machine.backend)
    same = rope_store(qkv, *tables, slots, expected[0], expected[1], backend="reference")
    name = f"rope_store, {dtype_name(dtype)}"
    findings.require_none(f"{name}: queries", queries != same)
    findings.require_none(f"{name}: keys", found[0] != expected[0])
    findings.require_none(f"{name}: values", found[1] != expected[1])


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


def launches(shape: LaunchShape) -> Iterator[Launch]:
    for adds in (False, True):
        run = partial(_launch_norm, shape, adds)
        yield Launch(f"rms_norm{' of a sum' if adds else ''}, {shape.name}", run)
    yield Launch(f"silu_mul n={shape.intermediate}, {shape.name}", partial(_launch_gate, shape))
    yield Launch(f"rope_store, {shape.name}", partial(_launch_rope, shape))


def _launch_norm(shape: LaunchShape, adds: bool) -> object:
    x, weight = (torch.empty(*size, shape.hidden, dtype=shape.dtype) for size in ((ROWS,), ()))
    return rms_norm(x, weight, shape.norm_eps, torch.empty_like(x) if adds else None, backend="triton")


def _launch_gate(shape: LaunchShape) -> object:
    return silu_mul(torch.empty(ROWS, 2 * shape.intermediate, dtype=shape.dtype), backend="triton")


def _launch_rope(shape: LaunchShape) -> object:
    heads, dtype = shape.attention, shape.dtype
    cache = torch.empty(4, BLOCK_SIZE, heads.kv_heads, heads.dim, dtype=dtype)
    table, slots = torch.empty(ROWS, heads.dim, dtype=dtype), torch.empty(ROWS, dtype=torch.long)
    qkv = torch.empty(ROWS, (heads.heads + 2 * heads.kv_heads) * heads.dim, dtype=dtype)
    return rope_store(qkv, table, table, slots, cache, torch.empty_like(cache), backend="triton")


CASES = {
    "layer ops": Case("check", check_layer_ops, 20, FIRST),
    "layer ops, times": Case("benchmark", bench_layer_ops, 20, FEW),
}
