"""Guided draw from materialised logits: check against float64 and by chi-square, times beside its floor."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
from torch import Tensor

from benchmarks.gpu.case import FEW, FIRST, REST, Case
from benchmarks.gpu.findings import Findings
from benchmarks.gpu.inputs import LOGIT_SCALE, DrawKeys, KernelSizes, Source
from benchmarks.gpu.launches import ROWS, Launch, LaunchShape, cuts, keys
from benchmarks.gpu.machine import Machine
from benchmarks.gpu.oracle import fields_of, measure_exactly, require_exact, require_invariance
from benchmarks.gpu.rotation import Job, measure
from trimtab.kernels.base_statistics import base_statistics
from trimtab.kernels.guided_head import guided_head
from trimtab.kernels.guided_logits import GuidedDraw, guided_logits
from trimtab.kernels.truncate import truncate_and_draw


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


VOCAB_SIZE = 64
MAX_ROWS = 16384
MAX_CALLS = 1500
TEMPERATURE = 0.8


def require_distribution(
    findings: Findings,
    name: str,
    probabilities: Tensor,
    draw: Callable[[DrawKeys], Tensor],
    num_draws: int,
    num_rows: int,
) -> None:
    """draw: tokens i64[B] of B keys, drawn independently from `probabilities` f64[V]."""
    device = probabilities.device
    count = torch.zeros_like(probabilities)
    row = torch.arange(num_rows, device=device)
    for position in range(-(-num_draws // num_rows)):
        keys = DrawKeys(
            row,
            torch.full_like(row, position),
            torch.zeros_like(row),
            torch.full((num_rows,), TEMPERATURE, device=device),
        )
        count += torch.bincount(draw(keys), minlength=len(count))
    expected = count.sum() * probabilities
    is_possible = probabilities > 0
    findings.require(f"{name}: draws of impossible tokens", float(count[~is_possible].sum()), 0)
    spread = ((count - expected) ** 2 / expected)[is_possible].sum()
    freedom = int(is_possible.sum()) - 1
    findings.require(f"{name}: chi-square of {freedom}", spread, freedom + 10 * math.sqrt(2 * freedom))


def check_draws_follow_the_tilt(machine: Machine, sizes: KernelSizes, findings: Findings) -> None:
    """From logits, fused with a tiny output embedding, and truncated."""
    source = Source(machine.device, seed=1)
    logits, advantage = source.normal(1, VOCAB_SIZE), source.normal(1, VOCAB_SIZE, scale=2)
    guided = logits + advantage

    def from_logits(keys: DrawKeys) -> Tensor:
        place = torch.zeros_like(keys.seeds)
        return guided_logits(
            logits.expand(len(place), -1), **keys.as_dict(), advantage=advantage, advantage_row=place,
            beta=torch.ones_like(keys.temperature), backend=machine.backend,
        ).token  # fmt: skip

    # One-hot h and inner parts: row 0 of the transposed weights is z, and of the head's A.
    h = torch.zeros(1, 16, device=machine.device)
    h[0, 0] = 1
    weight, up = torch.zeros(2, VOCAB_SIZE, 16, device=machine.device).unbind()
    weight[:, 0], up[:, 0] = logits[0], advantage[0]

    def fused(keys: DrawKeys) -> Tensor:
        rows = h.expand(len(keys.seeds), -1).contiguous()
        return guided_head(
            rows, weight, **keys.as_dict(), lowrank=(rows, up), beta=torch.ones_like(keys.temperature),
            backend=machine.backend,
        ).token  # fmt: skip

    cut = guided.sort(1).values[0, VOCAB_SIZE // 4]

    def truncated(keys: DrawKeys) -> Tensor:
        top_k = torch.full_like(keys.seeds, VOCAB_SIZE - VOCAB_SIZE // 4)
        rows = guided.expand(len(keys.seeds), -1).contiguous()
        return truncate_and_draw(rows, **keys.as_dict(), top_k=top_k, backend=machine.backend)

    scaled = guided.double()[0] / TEMPERATURE
    left = scaled.masked_fill(guided[0] < cut, -torch.inf)
    for name, draw, scores, most in (
        ("guided_logits", from_logits, scaled, MAX_ROWS),
        ("guided_head", fused, scaled, sizes.max_fused_rows),
        ("truncate_and_draw", truncated, left, MAX_ROWS),
    ):
        num_rows = min(most, sizes.num_draws)
        num_draws = min(sizes.num_draws, MAX_CALLS * num_rows)
        with findings.attempt(name):
            require_distribution(findings, name, scores.softmax(0), draw, num_draws, num_rows)


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
            {"torch": lambda: sample(logits)},
        )
    advantage, beta = source.normal(num_rows, sizes.vocab), source.strengths(num_rows)
    tilt: dict[str, Any] = {
        "advantage": advantage,
        "advantage_row": torch.arange(num_rows, device=machine.device),
        "beta": beta,
    }
    return Job(
        lambda: guided_logits(logits, **keys.as_dict(), **tilt, any_greedy=False, backend=machine.backend),
        {"torch": lambda: sample_guided(logits, advantage, beta)},
    )


def sample(logits: Tensor) -> Tensor:
    """A token per row at temperature 1, by exponential noise, which needs no host wait."""
    return logits.softmax(1).div_(torch.empty_like(logits).exponential_()).argmax(1)


def sample_guided(logits: Tensor, advantage: Tensor, beta: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Token, its log-probability under tilt and base, and the KL between them."""
    base = logits.log_softmax(1)
    weight = base.exp()
    shift = beta[:, None] * (advantage - (weight * advantage).sum(1, keepdim=True))
    guided = (logits + shift).log_softmax(1)
    probabilities = guided.exp()
    kl = (probabilities * (guided - base)).sum(1)
    token = (probabilities / torch.empty_like(probabilities).exponential_()).argmax(1)
    at = token[:, None]
    return token, guided.gather(1, at)[:, 0], base.gather(1, at)[:, 0], kl


def launches(shape: LaunchShape) -> Iterator[Launch]:
    for tilts, cut, samples, entropy in itertools.product((False, True), repeat=4):
        words = [name for name, has in (("tilted", tilts), ("truncated", cut)) if has]
        kind = f"{'sampled' if samples else 'greedy'}{', entropy' if entropy else ''}"
        run = partial(_launch, shape, tilts, cut, samples, entropy)
        yield Launch(f"guided_logits {', '.join([*words, kind])}, {shape.name}", run)
    for tilts, entropy in itertools.product((False, True), repeat=2):
        run = partial(_launch_statistics, shape, tilts, entropy)
        yield Launch(f"base_statistics tilts {tilts}, entropy {entropy}, {shape.name}", run)


def _launch(shape: LaunchShape, tilts: bool, cut: bool, samples: bool, entropy: bool) -> object:
    tilt = shape.tilt() | {"beta": torch.empty(ROWS)} if tilts else {}
    return guided_logits(
        shape.logits(), **keys(), **tilt, **(cuts() if cut else {}), want_entropy=entropy,
        any_sampled=samples, backend="triton",
    )  # fmt: skip


def _launch_statistics(shape: LaunchShape, tilts: bool, entropy: bool) -> object:
    tilt = shape.tilt() if tilts else {}
    return base_statistics(shape.logits(), **tilt, want_entropy=entropy, backend="triton")


CASES = {
    "guided_logits": Case("check", check_guided_logits, 20, FIRST),
    "guided_logits, invariance": Case("check", check_guided_logits_invariance, 20, FIRST),
    "draws follow the tilt": Case("check", check_draws_follow_the_tilt, 20, {"num_draws": 200_000}),
    "guided_logits, times": Case("benchmark", bench_guided_logits, 20, FEW),
    "guided_logits, every shape": Case("check", check_guided_logits, 20, turn="afterwards"),
    "guided_logits, times of other rows": Case("benchmark", bench_guided_logits, 20, REST, "afterwards"),
}
