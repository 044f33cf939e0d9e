"""Guided draw fused with the output embedding: check against float64, and times beside its floor."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from benchmarks.gpu.case import FEW, FIRST, REST, Case
from benchmarks.gpu.findings import Aim, Findings, Measurement
from benchmarks.gpu.inputs import DrawKeys, HeadInputs, KernelSizes, Source, dtype_name
from benchmarks.gpu.kernels.guided_logits import sample, sample_guided
from benchmarks.gpu.launches import Launch, LaunchShape
from benchmarks.gpu.launches import keys as empty_keys
from benchmarks.gpu.machine import Machine
from benchmarks.gpu.oracle import fields_of, measure_exactly, require_exact, require_invariance
from benchmarks.gpu.rotation import Job, measure
from benchmarks.gpu.timing import Call
from trimtab.kernels.guided_head import ROW_TILES, guided_head
from trimtab.kernels.guided_logits import GuidedDraw, guided_logits

# The parts of an advantage: a second column for W itself, a low-rank one, or both.
FORMS: dict[str, frozenset[str]] = {
    "plain": frozenset(),
    "tied": frozenset({"tied"}),
    "low-rank": frozenset({"low-rank"}),
    "both": frozenset({"tied", "low-rank"}),
}


def make_head(
    source: Source, num_rows: int, shape: tuple[int, int], dtype: torch.dtype, form: str, rank: int
) -> HeadInputs:
    parts = FORMS[form]
    return source.head(num_rows, shape, dtype, tied="tied" in parts, rank=rank if "low-rank" in parts else 0)


def run_head(inputs: HeadInputs, keys: DrawKeys, beta: Tensor, backend: str, **hints: Any) -> GuidedDraw:
    is_plain = inputs.column is None and inputs.lowrank is None
    return guided_head(
        inputs.h,
        inputs.weight,
        **keys.as_dict(),
        column=inputs.column,
        lowrank=inputs.lowrank,
        beta=None if is_plain else beta,
        backend=backend,
        **hints,
    )


def check_guided_head(machine: Machine, sizes: KernelSizes, findings: Findings) -> None:
    """Every form over all shapes in the first dtype; the emptiest and the fullest over awkward ones in the
    others."""
    for place, dtype in enumerate(sizes.dtypes):
        shapes = sizes.head_shapes if place == 0 else sizes.head_shapes[1:]
        forms = list(FORMS) if place == 0 else ["plain", "both"]
        for shape in shapes:
            for turn, form in enumerate(forms):
                num_rows = sizes.check_rows[turn % len(sizes.check_rows)]
                with findings.attempt(f"{dtype_name(dtype)}, {form}, {num_rows} rows, V {shape[1]}"):
                    _check_form(findings, machine, shape, dtype, form, num_rows, sizes.rank)


def check_guided_head_invariance(machine: Machine, sizes: KernelSizes, findings: Findings) -> None:
    for form in FORMS:
        with findings.attempt(form):
            _check_invariance(findings, machine, sizes, form)


def _check_form(
    findings: Findings,
    machine: Machine,
    shape: tuple[int, int],
    dtype: torch.dtype,
    form: str,
    num_rows: int,
    rank: int,
) -> None:
    source = Source(machine.device, seed=num_rows)
    inputs = make_head(source, num_rows, shape, dtype, form, rank)
    keys, beta = source.keys(num_rows), source.strengths(num_rows)
    draw = run_head(inputs, keys, beta, machine.backend, want_entropy=True)
    exact = measure_exactly(inputs.exact_logits(), inputs.exact_advantage(), beta, keys)
    name = f"{dtype_name(dtype)}, d {shape[0]}, V {shape[1]}, {form}"
    require_exact(findings, name, draw, exact)


def _check_invariance(findings: Findings, machine: Machine, sizes: KernelSizes, form: str) -> None:
    source, most = Source(machine.device), sizes.max_fused_rows
    inputs = make_head(source, most, sizes.head_shapes[0], sizes.dtypes[0], form, sizes.rank)
    keys, beta = source.keys(most), source.strengths(most)

    def run(rows: Tensor) -> dict[str, Tensor]:
        return fields_of(run_head(inputs.pick(rows), keys.pick(rows), beta[rows], machine.backend))

    require_invariance(findings, form, machine, run, most, sizes.batch_sizes)
    with machine.host_waits() as waits:
        run_head(inputs, keys, beta, machine.backend)
    findings.require_no_waits(f"{form}: host waits of a launch", waits)


BANDWIDTH_AIMS = {16: 0.9, 64: 0.8}  # up to so many rows, of the bandwidth measured in the same run
TIED_AIMS = {16: 1.05, 32: 1.10, 64: 1.30}  # up to so many rows, of the plain kernel's time
MAX_AIMED_ROWS = 64  # for more the engine takes the other path; the figures show where it should


def bench_guided_head(machine: Machine, sizes: KernelSizes, findings: Findings) -> None:
    """Beside each: the product by torch, then our kernel on its logits; and torch for all of it."""
    for num_rows in sizes.fused_rows:
        times: dict[str, float] = {}
        for form in ("plain", "tied", "low-rank"):
            found = measure_head(findings, machine, sizes, form, num_rows)
            if found is not None:
                times[form] = found.time.median
        if num_rows <= MAX_AIMED_ROWS and "plain" in times:
            share = machine.floor(_num_bytes(sizes, "plain")) / times["plain"]
            what = f"fused head, plain, {num_rows} rows, of the bandwidth"
            findings.aims.append(Aim(what, share, at_least=_aim(BANDWIDTH_AIMS, num_rows)))
            if "tied" in times:
                what, ratio = f"fused head, tied / plain, {num_rows} rows", times["tied"] / times["plain"]
                findings.aims.append(Aim(what, ratio, at_most=_aim(TIED_AIMS, num_rows)))


def _aim(aims: dict[int, float], num_rows: int) -> float:
    return next(aim for most, aim in aims.items() if num_rows <= most)


def _num_bytes(sizes: KernelSizes, form: str) -> float:
    columns = sizes.hidden + (sizes.rank if form == "low-rank" else 0)
    return sizes.vocab * columns * sizes.dtypes[0].itemsize


def measure_head(
    findings: Findings,
    machine: Machine,
    sizes: KernelSizes,
    form: str,
    num_rows: int,
    others: bool = True,
    note: str = "",
) -> Measurement | None:
    """others: also time other ways to the same. note: on what is special about this one."""
    dtype = sizes.dtypes[0]

    def make(copy: int) -> Job:
        source = Source(machine.device, seed=copy)
        inputs = make_head(source, num_rows, (sizes.hidden, sizes.vocab), dtype, form, sizes.rank)
        keys, beta = source.keys(num_rows, temperatures=(1.0,)), source.strengths(num_rows)
        return Job(
            lambda: run_head(inputs, keys, beta, machine.backend, any_greedy=False),
            {
                "materialised": materialised(inputs, keys, beta, machine.backend),
                "torch": _torch(inputs, beta),
            }
            if others
            else {},
        )

    return measure(
        findings, machine, sizes.repeats, make,
        op=f"guided_head, {form}{note}",
        shape=f"d={sizes.hidden} V={sizes.vocab} {dtype_name(dtype)}",
        rows=num_rows,
        num_bytes=_num_bytes(sizes, form),
    )  # fmt: skip


def _products(inputs: HeadInputs) -> tuple[Tensor, Tensor | None]:
    """z and A, f32[B, V]; W is read once for h and g."""
    num_rows = len(inputs.h)
    columns = inputs.h if inputs.column is None else torch.cat([inputs.h, inputs.column])
    products = F.linear(columns, inputs.weight).float()
    advantage = None if inputs.column is None else products[num_rows:]
    if inputs.lowrank is not None:
        inner, up = inputs.lowrank
        lowrank = F.linear(inner, up).float()
        advantage = lowrank if advantage is None else advantage + lowrank
    return products[:num_rows], advantage


def materialised(inputs: HeadInputs, keys: DrawKeys, beta: Tensor, backend: str) -> Call:
    """The path for many rows: torch's product, then the draw from logits."""
    place = torch.arange(len(beta), device=beta.device)

    def run() -> object:
        z, advantage = _products(inputs)
        tilt: dict[str, Any] = {}
        if advantage is not None:
            tilt = {"advantage": advantage, "advantage_row": place, "beta": beta}
        return guided_logits(z, **keys.as_dict(), **tilt, any_greedy=False, backend=backend)

    return run


def _torch(inputs: HeadInputs, beta: Tensor) -> Call:
    def run() -> object:
        z, advantage = _products(inputs)
        return sample(z) if advantage is None else sample_guided(z, advantage, beta)

    return run


def launches(shape: LaunchShape) -> Iterator[Launch]:
    flags = ((True, False), (False, False), (True, True))  # any row sampled; entropy, which checks ask for
    tiles = ROW_TILES[:1] if shape.dtype == torch.float32 else ROW_TILES
    for form, parts in FORMS.items():
        for rows, (samples, entropy) in itertools.product(tiles, flags):
            kind = f"{'sampled' if samples else 'greedy'}{', entropy' if entropy else ''}"
            run = partial(_launch, shape, rows, parts, samples, entropy)
            yield Launch(f"guided_head {form}, {rows} rows, {kind}, {shape.name}", run)


def _launch(shape: LaunchShape, rows: int, parts: frozenset[str], samples: bool, entropy: bool) -> object:
    h, rank = torch.empty(rows, shape.hidden, dtype=shape.dtype), shape.rank * shape.num_heads
    return guided_head(
        h, shape.weight(shape.hidden), **empty_keys(rows),
        column=torch.empty_like(h) if "tied" in parts else None,
        lowrank=(h.new_empty(rows, rank), shape.weight(rank)) if "low-rank" in parts else None,
        beta=torch.empty(rows) if parts else None, want_entropy=entropy, any_sampled=samples,
        backend="triton",
    )  # fmt: skip


CASES = {
    "guided_head": Case("check", check_guided_head, 40, FIRST),
    "guided_head, invariance": Case("check", check_guided_head_invariance, 30, FIRST),
    "guided_head, times": Case("benchmark", bench_guided_head, 40, FEW),
    "guided_head, every type and shape": Case("check", check_guided_head, 60, turn="afterwards"),
    "guided_head, times of other rows": Case("benchmark", bench_guided_head, 40, REST, "afterwards"),
}
