"""Variants of launch parameters, timed beside the chosen ones, which were chosen by reading.

None of them changes what a kernel computes beyond the order of its sums; the fastest may become the chosen.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Iterator
from typing import Any
from unittest import mock

from benchmarks.gpu.case import FEW, Case
from benchmarks.gpu.findings import Findings
from benchmarks.gpu.inputs import KernelSizes
from benchmarks.gpu.kernels.attention import launches as attention_launches
from benchmarks.gpu.kernels.attention import measure_decode
from benchmarks.gpu.kernels.guided_head import launches as guided_head_launches
from benchmarks.gpu.kernels.guided_head import measure_head
from benchmarks.gpu.launches import Launch, LaunchShape
from benchmarks.gpu.machine import Machine
from trimtab.kernels import guided_head, paged_attention

HEAD_STAGES = (3, 4, 5)
# Programs that a row is cut into, the least keys of one, and blocks in flight.
DECODE = (
    (128, 256, 5),
    (128, 512, 5),
    (256, 128, 5),
    (256, 256, 5),
    (256, 512, 5),
    (128, 256, 3),
    (128, 512, 3),
)


def bench_variants(machine: Machine, sizes: KernelSizes, findings: Findings) -> None:
    for name, variant in head_variants().items():
        for num_rows in sizes.fused_rows:
            with variant():
                measure_head(findings, machine, sizes, "plain", num_rows, others=False, note=f", {name}")
    for name, variant in decode_variants().items():
        for num_rows, context in sizes.contexts:
            with variant():
                measure_decode(findings, machine, sizes, num_rows, context, others=False, note=f", {name}")


def launches(shape: LaunchShape) -> Iterator[Launch]:
    """The same programs, compiled under the variant."""
    for name, variant in head_variants().items():
        for launch in guided_head_launches(shape):
            if "plain" in launch.name and "sampled, d=" in launch.name:
                yield Launch(f"{launch.name}, {name}", _under(variant, launch.run))
    for name, variant in decode_variants().items():
        for launch in attention_launches(shape):
            if "decode" in launch.name:
                yield Launch(f"{launch.name}, {name}", _under(variant, launch.run))


def head_variants() -> dict[str, Callable[[], contextlib.AbstractContextManager[Any]]]:
    return {f"{stages} stages": _head_variant(stages) for stages in HEAD_STAGES}


def decode_variants() -> dict[str, Callable[[], contextlib.AbstractContextManager[Any]]]:
    return {
        f"{programs} programs, chunks of {chunk}, {stages} stages": _decode_variant(programs, chunk, stages)
        for programs, chunk, stages in DECODE
    }


def _head_variant(stages: int) -> Callable[[], contextlib.AbstractContextManager[Any]]:
    return lambda: mock.patch.object(guided_head, "_num_stages", return_value=stages)


def _decode_variant(
    programs: int, chunk: int, stages: int
) -> Callable[[], contextlib.AbstractContextManager[Any]]:
    choose = paged_attention._config

    @contextlib.contextmanager
    def variant() -> Iterator[None]:
        with (
            mock.patch.object(paged_attention, "PROGRAMS", programs),
            mock.patch.object(paged_attention, "MIN_CHUNK", chunk),
            mock.patch.object(
                paged_attention,
                "_config",
                lambda dim, dtype: dataclasses.replace(choose(dim, dtype), decode_stages=stages),
            ),
        ):
            yield

    return variant


def _under(
    variant: Callable[[], contextlib.AbstractContextManager[Any]], run: Callable[[], object]
) -> Callable[[], object]:
    def launch() -> object:
        with variant():
            return run()

    return launch


CASES = {
    "variants of launches": Case(
        "benchmark",
        bench_variants,
        30,
        {**FEW, "fused_rows": (16, 64), "contexts": ((1, 8192), (8, 1024), (64, 1024))},
    )
}
