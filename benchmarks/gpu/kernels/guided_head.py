"""The guided draw fused with the output embedding."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from benchmarks.gpu.findings import Findings
from benchmarks.gpu.inputs import DrawKeys, HeadInputs, Source
from benchmarks.gpu.kernels.invariance import fields_of, require_invariance
from benchmarks.gpu.machine import Machine
from benchmarks.gpu.oracle import measure_exactly, require_exact
from benchmarks.gpu.sizes import KernelSizes, dtype_name
from trimtab.kernels.guided_head import guided_head
from trimtab.kernels.guided_logits import GuidedDraw

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
