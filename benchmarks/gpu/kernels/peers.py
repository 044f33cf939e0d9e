"""Peer FlashInfer, where it can be imported: its sampling, truncated sampling and paged decode beside ours.

Its samplers keep neither log-probabilities nor seeds of their own per row. Compiling its kernels may take
minutes the first time, which is why this case comes last.
"""

from __future__ import annotations

import importlib
from functools import partial
from typing import Any

import torch

from benchmarks.gpu.case import Case
from benchmarks.gpu.findings import Findings, SkippedError
from benchmarks.gpu.inputs import LOGIT_SCALE, KernelSizes, Source, dtype_name
from benchmarks.gpu.kernels.attention import paged_rows
from benchmarks.gpu.machine import Machine
from benchmarks.gpu.rotation import Job, measure
from trimtab.kernels.guided_logits import guided_logits
from trimtab.kernels.truncate import truncate_and_draw

FP32 = 4  # bytes of one logit
TOP_K, TOP_P = 50, 0.9
WORKSPACE_BYTES = 256 << 20


def bench_beside_flashinfer(machine: Machine, sizes: KernelSizes, findings: Findings) -> None:
    try:
        flashinfer = importlib.import_module("flashinfer")
    except ImportError as error:
        raise SkippedError(f"FlashInfer cannot be imported here: {error}") from error
    findings.facts["flashinfer"] = str(flashinfer.__version__)
    for num_rows in sizes.truncated_rows:
        _sampling(findings, machine, sizes, flashinfer.sampling, num_rows)
    for num_rows, context in sizes.contexts:
        _decode(findings, machine, sizes, flashinfer, num_rows, context)


def _sampling(findings: Findings, machine: Machine, sizes: KernelSizes, sampling: Any, num_rows: int) -> None:
    vocab = sizes.truncated_vocab
    top_k = torch.full((num_rows,), TOP_K, device=machine.device)
    top_p = torch.full((num_rows,), TOP_P, device=machine.device)

    def plain(copy: int) -> Job:
        source = Source(machine.device, copy)
        logits, keys = source.normal(num_rows, vocab, scale=LOGIT_SCALE), source.keys(num_rows, (1.0,))
        return Job(
            lambda: guided_logits(logits, **keys.as_dict(), any_greedy=False, backend=machine.backend),
            {"FlashInfer": lambda: sampling.sampling_from_logits(logits)},
        )

    def truncated(copy: int) -> Job:
        source = Source(machine.device, copy)
        logits, keys = source.normal(num_rows, vocab, scale=LOGIT_SCALE), source.keys(num_rows, (1.0,))
        return Job(
            lambda: truncate_and_draw(
                logits, **keys.as_dict(), top_k=top_k, top_p=top_p, backend=machine.backend
            ),
            {
                "FlashInfer": lambda: sampling.top_k_top_p_sampling_from_logits(
                    logits, top_k.int(), top_p, filter_apply_order="top_k_first"
                )
            },
        )

    shape, num_bytes = f"V={vocab}", num_rows * vocab * FP32
    jobs = {"guided_logits, plain": plain, f"truncate_and_draw, top-k {TOP_K}, top-p {TOP_P}": truncated}
    for op, make in jobs.items():
        measure(
            findings, machine, sizes.repeats, make, op=op, shape=shape, rows=num_rows, num_bytes=num_bytes
        )


def _decode(
    findings: Findings, machine: Machine, sizes: KernelSizes, flashinfer: Any, num_rows: int, context: int
) -> None:
    shape, dtype = sizes.attention, sizes.dtypes[0]

    def make(copy: int) -> Job:
        source = Source(machine.device, copy)
        rows = paged_rows(source, shape, dtype, [1] * num_rows, [context] * num_rows, sizes.block_size)
        num_blocks = -(-context // sizes.block_size)
        starts = torch.arange(num_rows + 1, device=machine.device, dtype=torch.int32) * num_blocks
        last = torch.full_like(starts[1:], context - (num_blocks - 1) * sizes.block_size)
        workspace = torch.empty(WORKSPACE_BYTES, dtype=torch.uint8, device=machine.device)
        wrapper = flashinfer.BatchDecodeWithPagedKVCacheWrapper(workspace, "NHD")
        wrapper.plan(
            starts, rows.tables[:, :num_blocks].flatten().int(), last, shape.heads, shape.kv_heads, shape.dim,
            sizes.block_size, q_data_type=dtype, kv_data_type=dtype,
        )  # fmt: skip
        theirs = partial(wrapper.run, rows.query, (rows.keys, rows.values))
        return Job(partial(rows.run, machine.backend, rows.arguments()), {"FlashInfer": theirs})

    measure(
        findings, machine, sizes.repeats, make,
        op="paged_attention, decode",
        shape=f"context={context} heads={shape.heads}/{shape.kv_heads} dim={shape.dim} {dtype_name(dtype)}",
        rows=num_rows,
        num_bytes=2 * num_rows * context * shape.kv_heads * shape.dim * dtype.itemsize,
    )  # fmt: skip


CASES = {"beside FlashInfer": Case("benchmark", bench_beside_flashinfer, 60, turn="last")}
