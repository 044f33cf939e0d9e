"""The truncated draw, against one reading of the logits and against torch's sort."""

from __future__ import annotations

from typing import Any

import torch

from benchmarks.gpu.findings import Aim, Findings
from benchmarks.gpu.inputs import LOGIT_SCALE, Source
from benchmarks.gpu.kernels import torch_path
from benchmarks.gpu.kernels.rotation import Job, measure
from benchmarks.gpu.machine import Machine
from benchmarks.gpu.sizes import KernelSizes
from trimtab.kernels.truncate import truncate_and_draw

FP32 = 4  # bytes of one logit
TRUNCATION_AIM = 1 / 3  # of the time of the sort

# By name: how peaked the rows are, and what cuts them. A nucleus of flat rows holds most of the vocabulary.
CUTS: dict[str, tuple[float, dict[str, float]]] = {
    "top-k 50, top-p 0.9": (LOGIT_SCALE, {"top_k": 50, "top_p": 0.9}),
    "top-p 0.9": (LOGIT_SCALE, {"top_p": 0.9}),
    "top-p 0.9, flat": (0.5, {"top_p": 0.9}),
    "min-p 0.05": (LOGIT_SCALE, {"min_p": 0.05}),
}


def bench_truncate_and_draw(machine: Machine, sizes: KernelSizes, findings: Findings) -> None:
    for num_rows in sizes.truncated_rows:
        for name in CUTS:

            def make(copy: int, num_rows: int = num_rows, name: str = name) -> Job:
                return truncated_job(machine, sizes, num_rows, name, copy)

            found = measure(
                findings, machine, sizes.repeats, make,
                op=f"truncate_and_draw, {name}",
                shape=f"V={sizes.truncated_vocab}",
                rows=num_rows,
                num_bytes=num_rows * sizes.truncated_vocab * FP32,
            )  # fmt: skip
            sorting = None if found is None else found.against.get("torch, sorting")
            if found is not None and sorting is not None:
                aim = f"truncate_and_draw, {name}, {num_rows} rows / torch, sorting"
                findings.aims.append(Aim(aim, found.time.median / sorting.median, at_most=TRUNCATION_AIM))


def truncated_job(machine: Machine, sizes: KernelSizes, num_rows: int, name: str, seed: int) -> Job:
    scale, cuts = CUTS[name]
    source = Source(machine.device, seed)
    logits, keys = source.normal(num_rows, sizes.truncated_vocab, scale=scale), source.keys(num_rows, (1.0,))
    tensors: dict[str, Any] = {"min_p": None, "top_k": None, "top_p": None}
    for cut, value in cuts.items():
        row = torch.full((num_rows,), value, device=machine.device)
        tensors[cut] = row.long() if cut == "top_k" else row
    return Job(
        lambda: truncate_and_draw(logits, **keys.as_dict(), **tensors, backend=machine.backend),
        {"torch, sorting": lambda: torch_path.sample_truncated(logits, **tensors)},
    )
