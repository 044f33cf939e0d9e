"""Masks, logit bias, penalties and token counts: check on the device against the same on the host; times of
masks beside their floors."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.gpu.case import FEW, FIRST, Case
from benchmarks.gpu.findings import Findings
from benchmarks.gpu.inputs import LOGIT_SCALE, KernelSizes, Source
from benchmarks.gpu.launches import ROWS, Launch, LaunchShape
from benchmarks.gpu.machine import Machine
from benchmarks.gpu.rotation import Job, measure
from trimtab.kernels.penalties import WORD, add_bias, apply_penalties, apply_token_mask, count_drawn

HISTORY = 200
ERROR = 1e-5


def check_penalties(machine: Machine, sizes: KernelSizes, findings: Findings) -> None:
    for _, vocab in sizes.head_shapes:
        source, num_rows = Source(machine.device, seed=vocab), max(sizes.check_rows)
        logits = source.normal(num_rows, vocab, scale=LOGIT_SCALE)
        rows = source.permutation(num_rows)[: num_rows - 1]
        inputs = _inputs(source, rows, vocab)
        on_host = {name: value.cpu() for name, value in inputs.items()}
        expected, found = logits.cpu(), logits.clone()
        expected_table, table = _penalise(expected, on_host), _penalise(found, inputs)
        findings.require("penalised logits", (found.cpu() - expected).abs(), ERROR)
        findings.require("token counts", (table.cpu() - expected_table).abs().float(), 0.0)
        with machine.host_waits() as waits:
            _penalise(found, inputs)
        findings.require_no_waits("host waits of bias, penalties and counts", waits)


def _inputs(source: Source, rows: Tensor, vocab: int) -> dict[str, Tensor]:
    num_rows, device = len(rows), rows.device
    # One token in steps of 7 from a start of each row's own, so that a row holds it once.
    at = torch.arange(HISTORY, device=device) * 7 + source.integers(0, vocab, num_rows, 1)
    return {
        "rows": rows,
        "tokens": at % vocab,
        "counts": at % vocab % 4,
        "drawn": source.integers(0, vocab, num_rows),
        "places": rows * vocab + at[:, 0] % vocab,
        "bias": source.cycle((2.0, -100.0), num_rows),
        "repetition": source.cycle((1.0, 1.3, 0.8), num_rows),
        "presence": source.cycle((0.0, 0.5, -1.0), num_rows),
        "frequency": source.cycle((0.2, 0.0), num_rows),
    }


def _penalise(logits: Tensor, inputs: dict[str, Tensor]) -> Tensor:
    """Bias and penalise the logits in place. Returns the table of counts after the drawn tokens."""
    inputs = dict(inputs)
    drawn, tokens, counts = inputs.pop("drawn"), inputs["tokens"], inputs["counts"]
    add_bias(logits, inputs.pop("places"), inputs.pop("bias"))
    apply_penalties(logits, **inputs)
    table = torch.stack([F.pad(tokens, (0, 1)), F.pad(counts, (0, 1))], 1)
    entries = torch.full_like(drawn, tokens.shape[1])
    count_drawn(table, torch.arange(len(drawn), device=drawn.device), tokens, counts, entries, drawn)
    return table


def _words(source: Source, num_rows: int, vocab: int) -> Tensor:
    """Bits of which half are set, i32[R, ⌈V/32⌉]."""
    return source.integers(-(2**31), 2**31, num_rows, -(-vocab // WORD)).int()


def check_token_mask(machine: Machine, sizes: KernelSizes, findings: Findings) -> None:
    for _, vocab in sizes.head_shapes:
        source, num_rows = Source(machine.device, seed=vocab), max(sizes.check_rows)
        logits = source.normal(num_rows, vocab)
        rows = source.permutation(num_rows)[: num_rows - 1]
        words, found = _words(source, len(rows), vocab), logits.clone()
        apply_token_mask(found, rows, words, backend=machine.backend)
        apply_token_mask(logits, rows, words, backend="reference")
        findings.require_none(f"masked logits, V={vocab}", found != logits)
        with machine.host_waits() as waits:
            apply_token_mask(found, rows, words, backend=machine.backend)
        findings.require_no_waits("host waits of the mask", waits)


def bench_token_mask(machine: Machine, sizes: KernelSizes, findings: Findings) -> None:
    _, vocab = sizes.head_shapes[0]
    for num_rows in sizes.logit_rows:
        measure(
            findings, machine, sizes.repeats, partial(_mask_job, machine, num_rows, vocab),
            op="apply_token_mask", shape=f"V={vocab}", rows=num_rows,
            num_bytes=num_rows * vocab * (2 + 1 / 8),
        )  # fmt: skip


def _mask_job(machine: Machine, num_rows: int, vocab: int, copy: int) -> Job:
    source = Source(machine.device, copy)
    logits, words = source.normal(num_rows, vocab), _words(source, num_rows, vocab)
    rows = torch.arange(num_rows, device=machine.device)

    def run(backend: str) -> None:
        apply_token_mask(logits, rows, words, backend=backend)

    return Job(lambda: run(machine.backend), {"torch": lambda: run("reference")})


def launches(shape: LaunchShape) -> Iterator[Launch]:
    yield Launch(f"apply_token_mask, V={shape.vocab}", partial(_launch_mask, shape))


def _launch_mask(shape: LaunchShape) -> None:
    rows, words = torch.empty(ROWS, dtype=torch.long), torch.empty(ROWS, -(-shape.vocab // WORD)).int()
    apply_token_mask(shape.logits(), rows, words, backend="triton")


CASES = {
    "penalties": Case("check", check_penalties, 20, FIRST),
    "token mask": Case("check", check_token_mask, 20, FIRST),
    "token mask, times": Case("benchmark", bench_token_mask, 20, FEW),
}
