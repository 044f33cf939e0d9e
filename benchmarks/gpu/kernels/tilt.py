"""Solver of strengths: check against bisection in float64, and times beside its floor."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial

import torch
from torch import Tensor

from benchmarks.gpu.case import FEW, FIRST, Case
from benchmarks.gpu.findings import Findings
from benchmarks.gpu.inputs import LOGIT_SCALE, KernelSizes, Source
from benchmarks.gpu.launches import ROWS, Launch, LaunchShape, subsets
from benchmarks.gpu.machine import Machine
from benchmarks.gpu.oracle import KL_ERROR, RELATIVE_KL_ERROR, require_invariance
from benchmarks.gpu.rotation import Job, measure
from trimtab.kernels.tilt import solve_tilt

NUM_HALVINGS = 50
SHORTFALL = 0.02  # of a limit that decides; the solver promises half of it


class _Batch:
    """Mixed strengths, caps and lifts, each also off; masked rows, and rows without an advantage."""

    def __init__(self, machine: Machine, num_rows: int, vocab: int) -> None:
        source = Source(machine.device, seed=vocab + num_rows)
        self.backend = machine.backend
        self.logits = source.normal(num_rows, vocab, scale=LOGIT_SCALE)
        self.logits[1::3] = self.logits[1::3].masked_fill(source.normal(vocab) > 0, -torch.inf)
        self.advantage = source.normal(num_rows, vocab)
        self.place = torch.arange(num_rows, device=machine.device)
        self.place[5::7] = -1
        self.strength = source.cycle((1.0, -2.0, 5.0, 0.0, -0.1), num_rows)
        self.kl_cap = source.cycle((0.05, torch.inf, 0.5, 2.0), num_rows)
        self.lift = source.cycle((torch.inf, 0.3, 0.8), num_rows)

    def solve(self, rows: Tensor) -> Tensor:
        return solve_tilt(
            self.logits[rows],
            self.advantage,
            self.place[rows],
            strength=self.strength[rows],
            kl_cap=self.kl_cap[rows],
            lift=self.lift[rows],
            backend=self.backend,
        )

    def measure(self, beta: Tensor) -> tuple[Tensor, Tensor]:
        """KL(π_β ‖ π₀) and σ E_β[Ā], f64[B]."""
        z = self.logits.double()
        centred = self.advantage.double()
        centred = centred - (z.softmax(1) * centred).sum(1, keepdim=True)
        tilted = z + beta.double()[:, None] * centred
        mean = (tilted.softmax(1) * centred).sum(1)
        kl = beta * mean - (tilted.logsumexp(1) - z.logsumexp(1))
        return kl, self.strength.sign() * mean


def check_solve_tilt(machine: Machine, sizes: KernelSizes, findings: Findings) -> None:
    for _, vocab in sizes.head_shapes:
        with findings.attempt(f"V {vocab}"):
            _check(findings, _Batch(machine, max(sizes.check_rows), vocab), machine)


def check_solve_tilt_invariance(machine: Machine, sizes: KernelSizes, findings: Findings) -> None:
    most = max(sizes.batch_sizes)
    batch = _Batch(machine, most, sizes.head_shapes[0][1])

    def run(rows: Tensor) -> dict[str, Tensor]:
        return {"beta": batch.solve(rows)}

    require_invariance(findings, "solve_tilt", machine, run, most, sizes.batch_sizes)
    with machine.host_waits() as waits:
        batch.solve(torch.arange(most, device=machine.device))
    findings.require_no_waits("host waits of a launch", waits)


def _check(findings: Findings, batch: _Batch, machine: Machine) -> None:
    found = batch.solve(torch.arange(len(batch.logits), device=machine.device))
    sign, most = batch.strength.sign(), batch.strength.abs().double()
    is_free = batch.place < 0
    findings.require_none("strength without an advantage", is_free & (found != 0))
    is_outside = (found * sign > most) | (found * sign < 0)
    findings.require_none("strength beyond what is allowed, or of the wrong sign", is_outside)

    kl, lift = batch.measure(found)
    cap = batch.kl_cap.double()
    findings.require("KL above its cap", (kl - cap * (1 + RELATIVE_KL_ERROR))[~is_free], KL_ERROR)

    by_cap = _largest(lambda b: batch.measure(sign * b)[0] <= cap, most)
    by_lift = _largest(lambda b: batch.measure(sign * b)[1] < batch.lift, most)
    cap_decides = ~is_free & (by_cap < most) & (by_cap <= by_lift)
    lift_decides = ~is_free & (by_lift < most) & (by_lift < by_cap)
    findings.require("share of a deciding cap left unused", (1 - kl / cap)[cap_decides], SHORTFALL)
    error = (lift / batch.lift - 1).abs()
    findings.require("error of a deciding lift", error[lift_decides], SHORTFALL)
    is_whole = ~is_free & (by_cap >= most) & (by_lift >= most)
    findings.require_none("other strengths where no limit decides", is_whole & (found != batch.strength))


def _largest(holds: Callable[[Tensor], Tensor], most: Tensor) -> Tensor:
    """The largest b in [0, most], f64[B], up to which an increasing measure holds."""
    low, high = torch.zeros_like(most), most
    whole = holds(most)
    for _ in range(NUM_HALVINGS):
        middle = (low + high) / 2
        is_kept = holds(middle)
        low, high = torch.where(is_kept, middle, low), torch.where(is_kept, high, middle)
    return torch.where(whole, most, low)


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


def launches(shape: LaunchShape) -> Iterator[Launch]:
    for names in subsets("kl_cap", "lift"):
        yield Launch(f"solve_tilt {names}, {shape.name}", partial(_launch, shape, names))


def _launch(shape: LaunchShape, names: tuple[str, ...]) -> object:
    rows = {name: torch.empty(ROWS) for name in ("strength", *names)}
    return solve_tilt(shape.logits(), **shape.tilt(), **rows, backend="triton")


CASES = {
    "solve_tilt": Case("check", check_solve_tilt, 20, FIRST),
    "solve_tilt, invariance": Case("check", check_solve_tilt_invariance, 20, FIRST),
    "solve_tilt, times": Case("benchmark", bench_solve_tilt, 20, FEW),
    "solve_tilt, every shape": Case("check", check_solve_tilt, 20, turn="afterwards"),
}
