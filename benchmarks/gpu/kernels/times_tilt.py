"""The solver of strengths, against one reading of logits and advantages."""

from __future__ import annotations

import torch
from torch import Tensor

from benchmarks.gpu.findings import Findings
from benchmarks.gpu.inputs import LOGIT_SCALE, Source
from benchmarks.gpu.kernels.rotation import Job, measure
from benchmarks.gpu.machine import Machine
from benchmarks.gpu.sizes import KernelSizes
from trimtab.kernels.tilt import solve_tilt

FP32 = 4  # bytes of one logit


def bench_solve_tilt(machine: Machine, sizes: KernelSizes, findings: Findings) -> None:
    """The reference runs the same iteration in torch ops on the same device."""
    for num_rows in sizes.truncated_rows:

        def make(copy: int, num_rows: int = num_rows) -> Job:
            source = Source(machine.device, copy)
            logits, advantage = (
                source.normal(num_rows, sizes.vocab, scale=scale) for scale in (LOGIT_SCALE, 1)
            )
            place = torch.arange(num_rows, device=machine.device)
            limits: dict[str, Tensor] = {
                "strength": source.cycle((1.0, -2.0, 5.0), num_rows),
                "kl_cap": source.cycle((0.05, 0.3), num_rows),
                "lift": source.cycle((0.5, 0.1), num_rows),
            }

            def solve(backend: str) -> Tensor:
                return solve_tilt(logits, advantage, place, **limits, backend=backend)

            return Job(lambda: solve(machine.backend), {"reference": lambda: solve("reference")})

        measure(
            findings, machine, sizes.repeats, make,
            op="solve_tilt",
            shape=f"V={sizes.vocab}",
            rows=num_rows,
            num_bytes=2 * num_rows * sizes.vocab * FP32,
        )  # fmt: skip
