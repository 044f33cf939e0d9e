"""The guided draw from materialised logits."""

from __future__ import annotations

import torch
from torch import Tensor

from benchmarks.gpu.findings import Findings
from benchmarks.gpu.inputs import LOGIT_SCALE, DrawKeys, Source
from benchmarks.gpu.kernels.invariance import fields_of, require_invariance
from benchmarks.gpu.machine import Machine
from benchmarks.gpu.oracle import measure_exactly, require_exact
from benchmarks.gpu.sizes import KernelSizes
from trimtab.kernels.guided_logits import GuidedDraw, guided_logits


class _Batch:
    """Masked and unmasked logits, mixed temperatures and strengths, rows without an advantage."""

    def __init__(self, machine: Machine, num_rows: int, vocab: int) -> None:
        source = Source(machine.device, seed=vocab + num_rows)
        self.backend = machine.backend
        self.logits = source.normal(num_rows, vocab, scale=LOGIT_SCALE)
        self.logits[1::3] = self.logits[1::3].masked_fill(source.normal(vocab) > 0, -torch.inf)
        self.advantage, self.beta = source.normal(num_rows, vocab), source.strengths(num_rows)
        self.keys: DrawKeys = source.keys(num_rows)
        self.place = torch.arange(num_rows, device=machine.device)
        self.place[3::4] = -1

    def run(self, rows: Tensor) -> GuidedDraw:
        return guided_logits(
            self.logits[rows],
            **self.keys.pick(rows).as_dict(),
            advantage=self.advantage,
            advantage_row=self.place[rows],
            beta=self.beta[rows],
            want_entropy=True,
            backend=self.backend,
        )


def check_guided_logits(machine: Machine, sizes: KernelSizes, findings: Findings) -> None:
    for _, vocab in sizes.head_shapes:
        for num_rows in sizes.check_rows:
            with findings.attempt(f"V {vocab}, {num_rows} rows"):
                batch = _Batch(machine, num_rows, vocab)
                draw = batch.run(torch.arange(num_rows, device=machine.device))
                beta = torch.where(batch.place >= 0, batch.beta, 0)
                exact = measure_exactly(batch.logits.double(), batch.advantage.double(), beta, batch.keys)
                require_exact(findings, f"V {vocab}", draw, exact)


def check_guided_logits_invariance(machine: Machine, sizes: KernelSizes, findings: Findings) -> None:
    most = max(sizes.batch_sizes)
    batch = _Batch(machine, most, sizes.head_shapes[0][1])

    def run(rows: Tensor) -> dict[str, Tensor]:
        return fields_of(batch.run(rows))

    require_invariance(findings, "draw", machine, run, most, sizes.batch_sizes)
    with machine.host_waits() as waits:
        batch.run(torch.arange(most, device=machine.device))
    findings.require_no_waits("host waits of a launch", waits)
