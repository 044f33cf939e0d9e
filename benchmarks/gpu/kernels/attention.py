"""Attention over the paged cache, and the store into it: check against float64, times beside floors."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from benchmarks.gpu.case import FEW, FIRST, REST, Case
from benchmarks.gpu.findings import Findings, SkippedError
from benchmarks.gpu.inputs import AttentionShape, KernelSizes, Source, dtype_name
from benchmarks.gpu.launches import BLOCK_SIZE, Launch, LaunchShape
from benchmarks.gpu.machine import Machine
from benchmarks.gpu.oracle import require_invariance, same_bits
from benchmarks.gpu.rotation import Job, measure
from benchmarks.gpu.timing import time_calls
from trimtab.kernels.paged_attention import paged_attention
from trimtab.kernels.store_kv import store_kv

ERRORS = {torch.float32: 2e-5, torch.float16: 2e-3, torch.bfloat16: 1.5e-2}


@dataclass(frozen=True, slots=True)
class PagedRows:
    """Rows of one packed call over a cache whose unused slots hold NaN.

    query [T, H, D]; keys, values [N, block_size, Hkv, D]; tables i64[R, ·]; lengths: queries per row,
    contexts: keys per row, on the host.
    """

    query: Tensor
    keys: Tensor
    values: Tensor
    tables: Tensor
    lengths: Sequence[int]
    contexts: Sequence[int]
    shape: AttentionShape

    def arguments(self) -> dict[str, Any]:
        device = self.query.device
        starts = torch.tensor([0, *self.lengths], device=device).cumsum(0)
        return {
            "block_tables": self.tables,
            "query_starts": starts.to(torch.int32),
            "context_lens": torch.tensor(self.contexts, dtype=torch.int32, device=device),
            "max_query_len": max(self.lengths),
            "scale": self.shape.dim**-0.5,
            "window": self.shape.window,
            "softcap": self.shape.softcap,
        }

    def run(self, backend: str, arguments: dict[str, Any] | None = None) -> Tensor:
        """arguments: made beforehand, where their making must not be timed."""
        arguments = self.arguments() if arguments is None else arguments
        return paged_attention(self.query, self.keys, self.values, **arguments, backend=backend)

    def pick(self, rows: Sequence[int]) -> PagedRows:
        parts = self.query.split(list(self.lengths))
        return PagedRows(
            torch.cat([parts[row] for row in rows]),
            self.keys,
            self.values,
            self.tables[list(rows)],
            [self.lengths[row] for row in rows],
            [self.contexts[row] for row in rows],
            self.shape,
        )

    def exact(self) -> Tensor:
        """f64[T, H, D], each row alone; zeros where a row has no context."""
        outs = []
        for row, query in enumerate(self.query.double().split(list(self.lengths))):
            context, size = self.contexts[row], self.keys.shape[1]
            if not context:
                outs.append(torch.zeros_like(query))
                continue
            blocks = self.tables[row, : -(-context // size)]
            keys, values = (
                cache[blocks]
                .flatten(0, 1)[:context]
                .double()
                .repeat_interleave(self.shape.heads // self.shape.kv_heads, 1)
                for cache in (self.keys, self.values)
            )
            outs.append(_attend(query, keys, values, self.shape))
        return torch.cat(outs)


def _attend(query: Tensor, keys: Tensor, values: Tensor, shape: AttentionShape) -> Tensor:
    scores = torch.einsum("nhd,lhd->hnl", query, keys) * shape.dim**-0.5
    if shape.softcap is not None:
        scores = shape.softcap * (scores / shape.softcap).tanh()
    key = torch.arange(len(keys), device=query.device)
    position = key[len(keys) - len(query) :, None]
    is_seen = key <= position
    if shape.window is not None:
        is_seen &= key > position - shape.window
    return torch.einsum("hnl,lhd->nhd", scores.masked_fill(~is_seen, -torch.inf).softmax(-1), values)


def paged_rows(
    source: Source,
    shape: AttentionShape,
    dtype: torch.dtype,
    lengths: Sequence[int],
    contexts: Sequence[int],
    block_size: int,
) -> PagedRows:
    """Random rows whose blocks lie scattered over the cache; what no row has written is NaN."""
    counts = [-(-context // block_size) for context in contexts]
    order = source.permutation(sum(counts) + 2)
    nowhere = order[-1]
    tables = nowhere.expand(len(contexts), max(*counts, 1) + 1).clone()
    written = torch.zeros(len(order), block_size, dtype=torch.bool, device=source.device)
    begin = 0
    for row, (count, context) in enumerate(zip(counts, contexts, strict=True)):
        blocks = order[begin : begin + count]
        tables[row, :count] = blocks
        flat = torch.arange(count * block_size, device=source.device) < context
        written[blocks] = flat.view(count, block_size)
        begin += count
    size = (len(order), block_size, shape.kv_heads, shape.dim)
    keys, values = (
        source.normal(*size, dtype=dtype).masked_fill_(~written[:, :, None, None], torch.nan)
        for _ in range(2)
    )
    query = source.normal(sum(lengths), shape.heads, shape.dim, dtype=dtype)
    return PagedRows(query, keys, values, tables, list(lengths), list(contexts), shape)


def check_paged_attention(machine: Machine, sizes: KernelSizes, findings: Findings) -> None:
    """Decode, prefill in the middle of a context, and both mixed with padding rows."""
    contexts = sizes.check_contexts
    lengths_of = {
        "decode": [1] * len(contexts),
        "prefill": [max(1, context * (1 + row % 3) // 3) for row, context in enumerate(contexts)],
        "mixed": [1 if row % 2 else context for row, context in enumerate(contexts)],
    }
    for dtype, shape in itertools.product(sizes.dtypes, sizes.attention_checks):
        for kind, lengths in lengths_of.items():
            with findings.attempt(f"{dtype_name(dtype)}, {shape}, {kind}"):
                source = Source(machine.device, seed=shape.dim)
                padded = ([*lengths, 1], [*contexts, 0])
                rows = paged_rows(source, shape, dtype, *padded, sizes.block_size)
                error = (rows.run(machine.backend) - rows.exact()).abs()
                findings.require(f"{dtype_name(dtype)}, {kind}", error, ERRORS[dtype])


def check_paged_attention_invariance(machine: Machine, sizes: KernelSizes, findings: Findings) -> None:
    if machine.backend != "triton":
        raise SkippedError("only Triton's kernels promise it")
    for dtype, shape in itertools.product(sizes.dtypes, sizes.attention_checks):
        with findings.attempt(f"{dtype_name(dtype)}, {shape}"):
            _check_decode_invariance(findings, machine, sizes, shape, dtype)


def _check_decode_invariance(
    findings: Findings, machine: Machine, sizes: KernelSizes, shape: AttentionShape, dtype: torch.dtype
) -> None:
    most = max(sizes.batch_sizes)
    contexts = [sizes.check_contexts[row % len(sizes.check_contexts)] for row in range(most)]
    source = Source(machine.device)
    rows = paged_rows(source, shape, dtype, [1] * most, contexts, sizes.block_size)

    def run(chosen: Tensor) -> dict[str, Tensor]:
        return {"out": rows.pick(chosen.tolist()).run(machine.backend)}

    name = f"{dtype_name(dtype)}, decode"
    require_invariance(findings, name, machine, run, most, sizes.batch_sizes)


def check_store_kv(machine: Machine, sizes: KernelSizes, findings: Findings) -> None:
    """Strided keys as models hand them over: bit for bit in their slots, and nothing else is touched."""
    shape, num_tokens, num_blocks = sizes.attention, sum(sizes.check_contexts[:4]), 40
    for dtype in sizes.dtypes:
        source = Source(machine.device)
        keys, values = (
            source.normal(shape.kv_heads, num_tokens, shape.dim, dtype=dtype).transpose(0, 1)
            for _ in range(2)
        )
        key_cache, value_cache = (
            source.normal(num_blocks, sizes.block_size, shape.kv_heads, shape.dim, dtype=dtype)
            for _ in range(2)
        )
        slots = source.permutation(num_blocks * sizes.block_size)[:num_tokens]
        expected = [
            cache.flatten(0, 1).index_copy(0, slots, new)
            for cache, new in ((key_cache, keys), (value_cache, values))
        ]
        store_kv(keys, values, slots, key_cache, value_cache, backend=machine.backend)
        found = (key_cache.flatten(0, 1), value_cache.flatten(0, 1))
        differing = sum(not same_bits(*pair) for pair in zip(found, expected, strict=True))
        findings.require(f"{dtype_name(dtype)}: caches that differ", differing, 0)


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


def launches(shape: LaunchShape) -> Iterator[Launch]:
    heads = shape.attention
    words = f"heads={heads.heads}/{heads.kv_heads} dim={heads.dim} {dtype_name(shape.dtype)}"
    words += f" window={heads.window} softcap={heads.softcap}"
    for kind, longest, splits in (("decode", 1, True), ("prefill", 20, True), ("strict", 20, False)):
        run = partial(_launch, heads, shape.dtype, longest, splits)
        yield Launch(f"paged_attention {kind}, {words}", run)
    yield Launch(f"store_kv {words}", partial(_launch_store, heads, shape.dtype))


def _launch(shape: AttentionShape, dtype: torch.dtype, longest: int, splits: bool) -> object:
    rows, cache = 2, torch.empty(4, BLOCK_SIZE, shape.kv_heads, shape.dim, dtype=dtype)
    query = torch.empty(rows * longest, shape.heads, shape.dim, dtype=dtype)
    return paged_attention(
        query, cache, torch.empty_like(cache), block_tables=torch.empty(rows, 64, dtype=torch.long),
        query_starts=torch.empty(rows + 1, dtype=torch.int32),
        context_lens=torch.empty(rows, dtype=torch.int32), max_query_len=longest, scale=shape.dim**-0.5,
        window=shape.window, softcap=shape.softcap, splits_keys=splits, backend="triton",
    )  # fmt: skip


def _launch_store(shape: AttentionShape, dtype: torch.dtype) -> None:
    cache = torch.empty(4, BLOCK_SIZE, shape.kv_heads, shape.dim, dtype=dtype)
    keys = torch.empty(16, shape.kv_heads, shape.dim, dtype=dtype)
    slots = torch.empty(16, dtype=torch.long)
    store_kv(keys, torch.empty_like(keys), slots, cache, torch.empty_like(cache), backend="triton")


CASES = {
    "paged_attention": Case("check", check_paged_attention, 40, FIRST),
    "store_kv": Case("check", check_store_kv, 20, FIRST),
    "paged_attention, invariance": Case("check", check_paged_attention_invariance, 20, FIRST),
    "paged_attention, times of decode": Case("benchmark", bench_decode, 30, FEW),
    "paged_attention, every type": Case("check", check_paged_attention, 60, turn="afterwards"),
    "paged_attention, times of other contexts": Case("benchmark", bench_decode, 30, REST, "afterwards"),
    "store_kv, times": Case("benchmark", bench_store_kv, 20, FEW, "afterwards"),
    "paged_attention, times of prefill": Case("benchmark", bench_prefill, 30, turn="late"),
}
