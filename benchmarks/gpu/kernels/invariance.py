"""A row's results are bitwise the same in every batch: any size, any order, any batchmates."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable

import torch
from torch import Tensor

from benchmarks.gpu.findings import Findings
from benchmarks.gpu.inputs import Source
from benchmarks.gpu.machine import Machine
from trimtab.kernels.guided_logits import GuidedDraw

RunRows = Callable[[Tensor], dict[str, Tensor]]


def require_invariance(
    findings: Findings, name: str, machine: Machine, run: RunRows, num_rows: int, sizes: Iterable[int]
) -> None:
    """run: the fields, one entry per row, of the given rows i64[B] of a batch of `num_rows`.

    Triton's kernels promise it; the references' matrix products do not.
    """
    if machine.backend != "triton":
        return
    source = Source(machine.device)
    whole = run(torch.arange(num_rows, device=source.device))
    for size in sizes:
        if size <= num_rows:
            rows = source.permutation(num_rows)[:size]
            part = run(rows)
            differing = sum(not same_bits(part[field], whole[field][rows]) for field in whole)
            findings.require(f"{name}: fields that depend on batchmates", differing, 0)


def fields_of(draw: GuidedDraw) -> dict[str, Tensor]:
    found = {field.name: getattr(draw, field.name) for field in dataclasses.fields(draw)}
    return {name: value for name, value in found.items() if value is not None}


def same_bits(a: Tensor, b: Tensor) -> bool:
    """Equal bit for bit; NaN equals NaN."""
    if a.is_floating_point():
        a, b = a.nan_to_num(nan=1e30), b.nan_to_num(nan=1e30)
    return torch.equal(a, b)
