"""The cases of each part, the most important first: what no time is left for is not run."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from trimtab.server.gpu.case import Case
from trimtab.server.gpu.engine_cases.equality import (
    check_fused_and_materialised,
    check_generate,
    check_routes,
    check_strict,
)
from trimtab.server.gpu.engine_cases.peers import bench_generate_batch
from trimtab.server.gpu.engine_cases.sizes import TOY_ENGINE_SIZES, EngineSizes
from trimtab.server.gpu.engine_cases.speed import (
    bench_latency,
    bench_lowrank_throughput,
    bench_tied_throughput,
)
from trimtab.server.gpu.kernel_benchmarks.adapter import bench_value_adapter
from trimtab.server.gpu.kernel_benchmarks.attention import bench_decode, bench_prefill, bench_store_kv
from trimtab.server.gpu.kernel_benchmarks.flashinfer import bench_beside_flashinfer
from trimtab.server.gpu.kernel_benchmarks.head import bench_guided_head
from trimtab.server.gpu.kernel_benchmarks.logits import bench_guided_logits
from trimtab.server.gpu.kernel_benchmarks.tilt import bench_solve_tilt
from trimtab.server.gpu.kernel_benchmarks.truncation import bench_truncate_and_draw
from trimtab.server.gpu.kernel_checks.attention import check_paged_attention, check_store_kv
from trimtab.server.gpu.kernel_checks.draw_statistics import check_draws_follow_the_tilt
from trimtab.server.gpu.kernel_checks.guided_head import check_guided_head
from trimtab.server.gpu.kernel_checks.guided_logits import check_guided_logits
from trimtab.server.gpu.kernel_checks.penalties import check_penalties
from trimtab.server.gpu.kernel_checks.tilt import check_solve_tilt
from trimtab.server.gpu.kernel_checks.truncation import check_truncation
from trimtab.server.gpu.kernel_checks.value_adapter import check_value_adapter
from trimtab.server.gpu.sizes import TOY_KERNEL_SIZES, KernelSizes


@dataclass(frozen=True, slots=True)
class Part:
    """sizes: on the GPU. toy: in a rehearsal."""

    cases: Mapping[str, Case]
    sizes: object
    toy: object


KERNELS = {
    "guided_head": Case("check", check_guided_head, 200),
    "guided_logits": Case("check", check_guided_logits, 60),
    "paged_attention": Case("check", check_paged_attention, 150),
    "truncation": Case("check", check_truncation, 60),
    "solve_tilt": Case("check", check_solve_tilt, 60),
    "value_adapter": Case("check", check_value_adapter, 60),
    "store_kv": Case("check", check_store_kv, 30),
    "penalties": Case("check", check_penalties, 20),
    "draws follow the tilt": Case("check", check_draws_follow_the_tilt, 30),
    "guided_head, times": Case("benchmark", bench_guided_head, 120),
    "truncate_and_draw, times": Case("benchmark", bench_truncate_and_draw, 60),
    "guided_logits, times": Case("benchmark", bench_guided_logits, 40),
    "solve_tilt, times": Case("benchmark", bench_solve_tilt, 40),
    "paged_attention, times of decode": Case("benchmark", bench_decode, 40),
    "paged_attention, times of prefill": Case("benchmark", bench_prefill, 30),
    "value_adapter, times": Case("benchmark", bench_value_adapter, 40),
    "store_kv, times": Case("benchmark", bench_store_kv, 20),
    "beside FlashInfer": Case("benchmark", bench_beside_flashinfer, 120),
}

ENGINE = {
    "replies are generate's": Case("check", check_generate, 90),
    "routes agree": Case("check", check_routes, 120),
    "fused and materialised agree": Case("check", check_fused_and_materialised, 60),
    "strict is bitwise": Case("check", check_strict, 60),
    "latency of one row": Case("benchmark", bench_latency, 90),
    "throughput, low-rank": Case("benchmark", bench_lowrank_throughput, 150),
    "throughput, tied": Case("benchmark", bench_tied_throughput, 90),
    "beside generate_batch": Case("benchmark", bench_generate_batch, 120),
}

PARTS = {
    "kernels": Part(KERNELS, KernelSizes(), TOY_KERNEL_SIZES),
    "engine": Part(ENGINE, EngineSizes(), TOY_ENGINE_SIZES),
}
