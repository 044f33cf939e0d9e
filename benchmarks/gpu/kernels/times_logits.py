"""The guided draw from materialised logits, against one reading of them."""

from __future__ import annotations

from typing import Any

import torch

from benchmarks.gpu.findings import Findings
from benchmarks.gpu.inputs import LOGIT_SCALE, Source
from benchmarks.gpu.kernels import torch_path
from benchmarks.gpu.kernels.rotation import Job, measure
from benchmarks.gpu.machine import Machine
from benchmarks.gpu.sizes import KernelSizes
from trimtab.kernels.guided_logits import guided_logits

FP32 = 4  # bytes of one logit


def bench_guided_logits(machine: Machine, sizes: KernelSizes, findings: Findings) -> None:
    for num_rows in sizes.logit_rows:
        for form in ("plain", "guided"):
            num_reads = 2 if form == "guided" else 1

            def make(copy: int, num_rows: int = num_rows, form: str = form) -> Job:
                return _guided_job(machine, sizes, num_rows, form == "guided", copy)

            measure(
                findings, machine, sizes.repeats, make,
                op=f"guided_logits, {form}",
                shape=f"V={sizes.vocab}",
                rows=num_rows,
                num_bytes=num_reads * num_rows * sizes.vocab * FP32,
            )  # fmt: skip


def _guided_job(machine: Machine, sizes: KernelSizes, num_rows: int, is_guided: bool, seed: int) -> Job:
    source = Source(machine.device, seed)
    logits, keys = source.normal(num_rows, sizes.vocab, scale=LOGIT_SCALE), source.keys(num_rows, (1.0,))
    if not is_guided:
        return Job(
            lambda: guided_logits(logits, **keys.as_dict(), any_greedy=False, backend=machine.backend),
            {"torch": lambda: torch_path.sample(logits)},
        )
    advantage, beta = source.normal(num_rows, sizes.vocab), source.strengths(num_rows)
    tilt: dict[str, Any] = {
        "advantage": advantage,
        "advantage_row": torch.arange(num_rows, device=machine.device),
        "beta": beta,
    }
    return Job(
        lambda: guided_logits(logits, **keys.as_dict(), **tilt, any_greedy=False, backend=machine.backend),
        {"torch": lambda: torch_path.sample_guided(logits, advantage, beta)},
    )
