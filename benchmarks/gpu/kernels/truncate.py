"""Truncation by min-p, top-k and top-p, and the draw from what is left: check against a float64 sort, and
times beside its floor.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any

import torch
from torch import Tensor

from benchmarks.gpu.case import FEW, FIRST, REST, Case
from benchmarks.gpu.findings import Aim, Findings
from benchmarks.gpu.inputs import LOGIT_SCALE, KernelSizes, Source
from benchmarks.gpu.kernels.guided_logits import sample
from benchmarks.gpu.launches import Launch, LaunchShape, subsets
from benchmarks.gpu.launches import cuts as empty_cuts
from benchmarks.gpu.launches import keys as empty_keys
from benchmarks.gpu.machine import Machine
from benchmarks.gpu.oracle import NEAR_TIE, exact_noise, require_invariance
from benchmarks.gpu.rotation import Job, measure
from trimtab.kernels.guided_logits import guided_logits
from trimtab.kernels.truncate import truncate_and_draw, truncation_threshold

MASS_ERROR = 1e-6  # of the mass up to a token, within which it may be cut or kept


class _Batch:
    """Peaked and flat rows, masked ones, greedy ones, and every cut on and off."""

    def __init__(self, machine: Machine, num_rows: int, vocab: int) -> None:
        source = Source(machine.device, seed=vocab + num_rows)
        self.backend = machine.backend
        spread = source.cycle((LOGIT_SCALE, 0.3, 1.0), num_rows)
        self.logits = source.normal(num_rows, vocab) * spread[:, None]
        self.logits[1::4] = self.logits[1::4].masked_fill(source.normal(vocab) > 0, -torch.inf)
        self.keys = source.keys(num_rows)
        self.cuts: dict[str, Any] = {
            "min_p": source.cycle((0.0, 0.05, 0.0, 0.001), num_rows),
            "top_k": source.cycle((0, 40, 1, vocab, 3), num_rows).long(),
            "top_p": source.cycle((0.9, 1.0, 0.3, 0.99, 1e-6), num_rows),
        }

    def pick(self, rows: Tensor) -> dict[str, Any]:
        return self.keys.pick(rows).as_dict() | {name: cut[rows] for name, cut in self.cuts.items()}

    def draw(self, rows: Tensor) -> Tensor:
        return truncate_and_draw(self.logits[rows], **self.pick(rows), backend=self.backend)

    def keeps(self) -> Tensor:
        temperature = self.keys.temperature
        threshold = truncation_threshold(self.logits, temperature, **self.cuts, backend=self.backend)
        return (self.logits >= threshold[:, None]) & (self.logits > -torch.inf)

    def keeps_exactly(self) -> tuple[Tensor, Tensor]:
        """bool[B, V]: what a float64 sort keeps; and where it might as well have done otherwise."""
        heat = self.keys.temperature.double()
        greedy = (heat == 0)[:, None]
        scaled = self.logits.double() / heat.masked_fill(heat == 0, 1)[:, None]
        values, order = scaled.sort(1, descending=True)
        kept = values >= values[:, :1] + self.cuts["min_p"].double().log()[:, None]
        top_k = self.cuts["top_k"]
        last = values.gather(1, (top_k.clamp(min=1, max=values.shape[1]) - 1)[:, None])
        kept &= (values >= last) | (top_k == 0)[:, None]
        mass = values.masked_fill(~kept, -torch.inf).softmax(1)
        before = mass.cumsum(1) - mass
        top_p = self.cuts["top_p"].double()[:, None]
        kept &= (before < top_p) | (top_p >= 1)
        close = (before - top_p).abs() <= MASS_ERROR
        is_finite = self.logits > -torch.inf
        kept = torch.zeros_like(kept).scatter(1, order, kept) | greedy
        return kept & is_finite, torch.zeros_like(close).scatter(1, order, close) & ~greedy


def check_truncation(machine: Machine, sizes: KernelSizes, findings: Findings) -> None:
    for _, vocab in sizes.head_shapes:
        with findings.attempt(f"V {vocab}"):
            _check(findings, machine, _Batch(machine, max(sizes.check_rows), vocab), vocab)


def _check(findings: Findings, machine: Machine, batch: _Batch, vocab: int) -> None:
    kept = batch.keeps()
    expected, close = batch.keeps_exactly()
    findings.require_none("tokens wrongly kept or cut", (kept != expected) & ~close)
    heat = batch.keys.temperature.double()[:, None]
    noise = torch.where(heat > 0, exact_noise(batch.keys, vocab), 0)
    score = batch.logits.double() / heat.masked_fill(heat == 0, 1) + noise
    score = score.masked_fill(~kept, -torch.inf)
    token = batch.draw(torch.arange(len(kept), device=machine.device))
    missed = score.amax(1) - score.gather(1, token.clamp(min=0)[:, None])[:, 0]
    findings.require_none("other tokens, no near tie", missed > NEAR_TIE)
    findings.require_none("rows without a token", token < 0)


def check_truncation_invariance(machine: Machine, sizes: KernelSizes, findings: Findings) -> None:
    most = max(sizes.batch_sizes)
    batch = _Batch(machine, most, sizes.head_shapes[0][1])

    def run(rows: Tensor) -> dict[str, Tensor]:
        return {"token": batch.draw(rows)}

    require_invariance(findings, "truncate_and_draw", machine, run, most, sizes.batch_sizes)
    rows = torch.arange(most, device=machine.device)
    guided_logits(batch.logits, **batch.pick(rows), backend=machine.backend)
    with machine.host_waits() as waits:
        batch.draw(rows)
        guided_logits(batch.logits, **batch.pick(rows), backend=machine.backend)
    findings.require_no_waits("host waits of a launch", waits)


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
        {"torch, sorting": lambda: sample_truncated(logits, **tensors)},
    )


def sample_truncated(
    logits: Tensor, min_p: Tensor | None, top_k: Tensor | None, top_p: Tensor | None
) -> Tensor:
    """min-p, top-k and top-p by one full sort per row."""
    values, order = logits.sort(1, descending=True)
    if min_p is not None:
        values = values.masked_fill(values < values[:, :1] + min_p.log()[:, None], -torch.inf)
    if top_k is not None:
        place = torch.arange(values.shape[1], device=values.device)
        is_cut = (place >= top_k[:, None]) & (top_k > 0)[:, None]
        values = values.masked_fill(is_cut, -torch.inf)
    if top_p is not None:
        probabilities = values.softmax(1)
        before = probabilities.cumsum(1) - probabilities
        values = values.masked_fill(before >= top_p[:, None], -torch.inf)
    return order.gather(1, sample(values)[:, None])[:, 0]


def launches(shape: LaunchShape) -> Iterator[Launch]:
    for names in subsets("min_p", "top_k", "top_p"):
        yield Launch(f"truncate_and_draw {names}, {shape.name}", partial(_launch_draw, shape, names))
        yield Launch(f"truncation_threshold {names}, {shape.name}", partial(_launch_threshold, shape, names))


def _launch_draw(shape: LaunchShape, names: tuple[str, ...]) -> object:
    return truncate_and_draw(shape.logits(), **empty_keys(), **empty_cuts(names), backend="triton")


def _launch_threshold(shape: LaunchShape, names: tuple[str, ...]) -> object:
    logits, temperature = shape.logits(), empty_keys()["temperature"]
    return truncation_threshold(logits, temperature, **empty_cuts(names), backend="triton")


CASES = {
    "truncation": Case("check", check_truncation, 20, FIRST),
    "truncation, invariance": Case("check", check_truncation_invariance, 20, FIRST),
    "truncate_and_draw, times": Case("benchmark", bench_truncate_and_draw, 30, FEW),
    "truncation, every shape": Case("check", check_truncation, 20, turn="afterwards"),
    "truncate_and_draw, times of other rows": Case(
        "benchmark", bench_truncate_and_draw, 30, REST, "afterwards"
    ),
}
