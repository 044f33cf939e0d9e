"""Attention over the paged cache against its keys' and values' bytes, and against torch on dense ones."""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor
from torch.nn import functional as F

from benchmarks.gpu.findings import Findings
from benchmarks.gpu.inputs import Source
from benchmarks.gpu.kernels.attention import PagedRows, paged_rows
from benchmarks.gpu.kernels.rotation import Job, measure
from benchmarks.gpu.machine import Machine
from benchmarks.gpu.sizes import KernelSizes, dtype_name
from benchmarks.gpu.timing import time_calls
from trimtab.kernels.store_kv import store_kv


def bench_decode(machine: Machine, sizes: KernelSizes, findings: Findings) -> None:
    """torch gets its keys and values dense and in order: what paging costs is part of the ratio."""
    for num_rows, context in sizes.contexts:
        measure_decode(findings, machine, sizes, num_rows, context)


def measure_decode(
    findings: Findings,
    machine: Machine,
    sizes: KernelSizes,
    num_rows: int,
    context: int,
    others: bool = True,
    note: str = "",
) -> None:
    """others: also time torch. note: on what is special about this one."""
    shape, dtype = sizes.attention, sizes.dtypes[0]

    def make(copy: int) -> Job:
        source = Source(machine.device, copy)
        rows = paged_rows(source, shape, dtype, [1] * num_rows, [context] * num_rows, sizes.block_size)
        ours = partial(rows.run, machine.backend, rows.arguments())
        if not others:
            return Job(ours, {})
        query, keys, values = dense(rows)
        attend = partial(F.scaled_dot_product_attention, query, keys, values, enable_gqa=True)
        return Job(ours, {"torch, dense": attend})

    measure(
        findings, machine, sizes.repeats, make,
        op=f"paged_attention, decode{note}",
        shape=f"context={context} {_describe(sizes)}",
        rows=num_rows,
        num_bytes=2 * num_rows * context * shape.kv_heads * shape.dim * dtype.itemsize,
    )  # fmt: skip


def bench_prefill(machine: Machine, sizes: KernelSizes, findings: Findings) -> None:
    """The floor is arithmetic's: at the rate of a large product measured here."""
    shape, dtype, n = sizes.attention, sizes.dtypes[0], sizes.prompt
    flops_per_second = matmul_rate(machine, sizes)
    findings.facts["matmul_tflops"] = float(f"{flops_per_second / 1e12:.4g}")

    def make(copy: int) -> Job:
        source = Source(machine.device, copy)
        rows = paged_rows(source, shape, dtype, [n], [n], sizes.block_size)
        query, keys, values = dense(rows)
        attend = partial(F.scaled_dot_product_attention, query, keys, values, is_causal=True, enable_gqa=True)
        return Job(partial(rows.run, machine.backend, rows.arguments()), {"torch, dense": attend})

    measure(
        findings, machine, sizes.repeats, make,
        op="paged_attention, prefill",
        shape=f"prompt={n} {_describe(sizes)}",
        rows=1,
        num_bytes=2 * n * (shape.heads + shape.kv_heads) * shape.dim * dtype.itemsize,
        floor=1e6 * 2 * n * n * shape.heads * shape.dim / flops_per_second,
    )  # fmt: skip


def bench_store_kv(machine: Machine, sizes: KernelSizes, findings: Findings) -> None:
    shape, dtype = sizes.attention, sizes.dtypes[0]
    for num_tokens in sizes.logit_rows:

        def make(copy: int, num_tokens: int = num_tokens) -> Job:
            source = Source(machine.device, copy)
            size = (shape.kv_heads, shape.dim)
            keys, values = (source.normal(num_tokens, *size, dtype=dtype) for _ in range(2))
            num_blocks = 4 * -(-num_tokens // sizes.block_size)
            caches = [source.normal(num_blocks, sizes.block_size, *size, dtype=dtype) for _ in range(2)]
            slots = source.permutation(num_blocks * sizes.block_size)[:num_tokens]

            def by_torch() -> None:
                for cache, new in zip(caches, (keys, values), strict=True):
                    cache.flatten(0, 1).index_copy_(0, slots, new)

            return Job(
                lambda: store_kv(keys, values, slots, caches[0], caches[1], backend=machine.backend),
                {"torch": by_torch},
            )

        measure(
            findings, machine, sizes.repeats, make,
            op="store_kv",
            shape=_describe(sizes),
            rows=num_tokens,
            num_bytes=4 * num_tokens * shape.kv_heads * shape.dim * dtype.itemsize,
        )  # fmt: skip


def dense(rows: PagedRows) -> tuple[Tensor, Tensor, Tensor]:
    """Query, keys and values [R, heads, length, D] of rows that are all of one length."""
    num_rows, context, size = len(rows.contexts), rows.contexts[0], rows.keys.shape[1]
    tables = rows.tables[:, : -(-context // size)]
    query = rows.query.view(num_rows, -1, *rows.query.shape[1:]).transpose(1, 2).contiguous()
    keys, values = (
        cache[tables].flatten(1, 2)[:, :context].transpose(1, 2).contiguous()
        for cache in (rows.keys, rows.values)
    )
    return query, keys, values


def matmul_rate(machine: Machine, sizes: KernelSizes) -> float:
    """Floating point operations per second of a large square product."""
    n = 2 * sizes.hidden
    source = Source(machine.device)
    a, b = (source.normal(n, n, dtype=sizes.dtypes[0]) for _ in range(2))
    time = time_calls(machine.device, [partial(torch.matmul, a, b)], sizes.repeats)
    return 2 * n**3 / (1e-6 * time.median)


def _describe(sizes: KernelSizes) -> str:
    shape = sizes.attention
    dtype = dtype_name(sizes.dtypes[0])
    return f"heads={shape.heads}/{shape.kv_heads} dim={shape.dim} {dtype}"
