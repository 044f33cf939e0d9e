"""Registry of the suite: its cases in the order in which they run, the most telling first."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import torch

from benchmarks.gpu.case import Case
from benchmarks.gpu.engine.equality import (
    check_fused_and_materialised,
    check_generate,
    check_routes,
    check_strict,
)
from benchmarks.gpu.engine.peers import bench_generate_batch
from benchmarks.gpu.engine.speed import (
    bench_latency,
    bench_lowrank_throughput,
    bench_tied_throughput,
)
from benchmarks.gpu.engine.subject import TOY_ENGINE_SIZES, EngineSizes, LlamaSize
from benchmarks.gpu.inputs import TOY_KERNEL_SIZES, AttentionShape, KernelSizes
from benchmarks.gpu.kernels.attention import (
    bench_decode,
    bench_prefill,
    bench_store_kv,
    check_paged_attention,
    check_paged_attention_invariance,
    check_store_kv,
)
from benchmarks.gpu.kernels.guided_head import (
    bench_guided_head,
    check_guided_head,
    check_guided_head_invariance,
)
from benchmarks.gpu.kernels.guided_logits import (
    bench_guided_logits,
    check_draws_follow_the_tilt,
    check_guided_logits,
    check_guided_logits_invariance,
)
from benchmarks.gpu.kernels.layer_ops import bench_layer_ops, check_layer_ops
from benchmarks.gpu.kernels.peers import bench_beside_flashinfer
from benchmarks.gpu.kernels.penalties import check_penalties
from benchmarks.gpu.kernels.tilt import bench_solve_tilt, check_solve_tilt, check_solve_tilt_invariance
from benchmarks.gpu.kernels.truncate import (
    bench_truncate_and_draw,
    check_truncation,
    check_truncation_invariance,
)
from benchmarks.gpu.kernels.value_adapter import NUM_HEADS, bench_value_adapter, check_value_adapter
from benchmarks.gpu.kernels.variants import bench_variants, variant_launches
from benchmarks.gpu.launches import (
    Launch,
    LaunchShape,
    adapter_launches,
    attention_launches,
    serving_launches,
)
from benchmarks.gpu.timing import Repeats


@dataclass(frozen=True, slots=True)
class Part:
    """sizes: on the GPU. toy: in a rehearsal."""

    cases: Mapping[str, Case]
    sizes: object
    toy: object


# Once in the type and at the shape that serving has; whatever is left over comes at the end.
FIRST = {
    "dtypes": (torch.bfloat16,),
    "head_shapes": ((4096, 128256),),
    "adapter_shapes": ((4096, 64),),
    "batch_sizes": (1, 16, 17, 33, 64),
}
FEW = {
    "repeats": Repeats(5, 30),
    "fused_rows": (1, 16, 64),
    "logit_rows": (64,),
    "adapter_rows": (1, 64),
    "truncated_rows": (64,),
    "contexts": ((1, 8192), (64, 1024)),
}
VARIED = {**FEW, "fused_rows": (16, 64), "contexts": ((1, 8192), (8, 1024), (64, 1024))}
REST = {
    "repeats": Repeats(5, 30),
    "fused_rows": (8, 32, 128),
    "logit_rows": (1, 128, 288),
    "adapter_rows": (288,),
    "truncated_rows": (1, 128),
    "contexts": ((288, 512), (8, 1024)),
}

KERNELS = {
    "guided_head": Case("check", check_guided_head, 40, FIRST),
    "guided_logits": Case("check", check_guided_logits, 20, FIRST),
    "paged_attention": Case("check", check_paged_attention, 40, FIRST),
    "truncation": Case("check", check_truncation, 20, FIRST),
    "solve_tilt": Case("check", check_solve_tilt, 20, FIRST),
    "value_adapter": Case("check", check_value_adapter, 20, FIRST),
    "store_kv": Case("check", check_store_kv, 20, FIRST),
    "layer ops": Case("check", check_layer_ops, 20, FIRST),
    "penalties": Case("check", check_penalties, 20, FIRST),
    "guided_head, invariance": Case("check", check_guided_head_invariance, 30, FIRST),
    "guided_logits, invariance": Case("check", check_guided_logits_invariance, 20, FIRST),
    "paged_attention, invariance": Case("check", check_paged_attention_invariance, 20, FIRST),
    "truncation, invariance": Case("check", check_truncation_invariance, 20, FIRST),
    "solve_tilt, invariance": Case("check", check_solve_tilt_invariance, 20, FIRST),
    "draws follow the tilt": Case("check", check_draws_follow_the_tilt, 20, {"num_draws": 200_000}),
    "guided_head, times": Case("benchmark", bench_guided_head, 40, FEW),
    "paged_attention, times of decode": Case("benchmark", bench_decode, 30, FEW),
    "truncate_and_draw, times": Case("benchmark", bench_truncate_and_draw, 30, FEW),
    "value_adapter, times": Case("benchmark", bench_value_adapter, 20, FEW),
    "layer ops, times": Case("benchmark", bench_layer_ops, 20, FEW),
    "guided_logits, times": Case("benchmark", bench_guided_logits, 20, FEW),
    "solve_tilt, times": Case("benchmark", bench_solve_tilt, 20, FEW),
    "variants of launches": Case("benchmark", bench_variants, 30, VARIED),
}

ENGINE = {
    "replies are generate's": Case("check", check_generate, 60, {"dtypes": (torch.bfloat16,)}),
    "routes agree": Case("check", check_routes, 60),
    "latency of one row": Case("benchmark", bench_latency, 60),
    "throughput, tied": Case("benchmark", bench_tied_throughput, 60),
    "throughput, low-rank": Case("benchmark", bench_lowrank_throughput, 60),
}

KERNELS_AFTERWARDS = {
    "guided_head, every type and shape": Case("check", check_guided_head, 60),
    "value_adapter, every type and shape": Case("check", check_value_adapter, 40),
    "paged_attention, every type": Case("check", check_paged_attention, 60),
    "truncation, every shape": Case("check", check_truncation, 20),
    "solve_tilt, every shape": Case("check", check_solve_tilt, 20),
    "guided_logits, every shape": Case("check", check_guided_logits, 20),
    "guided_head, times of other rows": Case("benchmark", bench_guided_head, 40, REST),
    "paged_attention, times of other contexts": Case("benchmark", bench_decode, 30, REST),
    "truncate_and_draw, times of other rows": Case("benchmark", bench_truncate_and_draw, 30, REST),
    "guided_logits, times of other rows": Case("benchmark", bench_guided_logits, 20, REST),
    "value_adapter, times of other rows": Case("benchmark", bench_value_adapter, 20, REST),
    "store_kv, times": Case("benchmark", bench_store_kv, 20, FEW),
}

ENGINE_AFTERWARDS = {
    "fused and materialised agree": Case("check", check_fused_and_materialised, 40),
    "strict is bitwise": Case("check", check_strict, 40),
    "replies are generate's, every type": Case("check", check_generate, 60),
}

LAST = {"paged_attention, times of prefill": Case("benchmark", bench_prefill, 30)}
PEERS = {"beside FlashInfer": Case("benchmark", bench_beside_flashinfer, 60)}
ENGINE_PEERS = {"beside generate_batch": Case("benchmark", bench_generate_batch, 60)}

PARTS = {
    "kernels": Part({**KERNELS, **KERNELS_AFTERWARDS, **LAST, **PEERS}, KernelSizes(), TOY_KERNEL_SIZES),
    "engine": Part({**ENGINE, **ENGINE_AFTERWARDS, **ENGINE_PEERS}, EngineSizes(), TOY_ENGINE_SIZES),
}
ORDER: tuple[tuple[str, Mapping[str, Case]], ...] = (
    ("kernels", KERNELS),
    ("engine", ENGINE),
    ("kernels", KERNELS_AFTERWARDS),
    ("engine", ENGINE_AFTERWARDS),
    ("kernels", LAST),
    ("engine", ENGINE_PEERS),
    ("kernels", PEERS),
)


def ordered_cases(is_rehearsal: bool) -> dict[tuple[str, str], tuple[Case, object]]:
    """Every case by part and name, in the order in which they run, with the sizes that it takes."""
    return {
        (part, name): (case, PARTS[part].toy if is_rehearsal else case.narrowed(PARTS[part].sizes))
        for part, cases in ORDER
        for name, case in cases.items()
    }


def suite_launches() -> Iterator[Launch]:
    """What the cases launch of our kernels until the peers, at their real sizes."""
    kernels, engine = KernelSizes(), EngineSizes()
    large = LaunchShape(kernels.hidden, kernels.vocab, kernels.attention, kernels.rank)
    yield from serving_launches(large)
    yield from adapter_launches(dataclasses.replace(large, num_heads=NUM_HEADS))
    yield from variant_launches(large)
    for shape in kernels.attention_checks[1:]:
        yield from attention_launches(shape, torch.bfloat16)
    for dtype in (torch.bfloat16, torch.float32):
        yield from serving_launches(_launch_shape(engine.small, dtype, engine.rank))


def _launch_shape(size: LlamaSize, dtype: torch.dtype, rank: int) -> LaunchShape:
    attention = AttentionShape(size.heads, size.kv_heads, size.hidden // size.heads)
    return LaunchShape(size.hidden, size.vocab, attention, rank, dtype=dtype, intermediate=size.intermediate)
