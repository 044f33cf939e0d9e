"""Registry of the suite: the modules whose cases it runs, the most telling first, and what they launch."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from types import ModuleType

import torch

from benchmarks.gpu.case import Case
from benchmarks.gpu.engine import equality, speed
from benchmarks.gpu.engine import peers as engine_peers
from benchmarks.gpu.engine.subject import TOY_ENGINE_SIZES, EngineSizes, LlamaSize
from benchmarks.gpu.inputs import TOY_KERNEL_SIZES, AttentionShape, KernelSizes
from benchmarks.gpu.kernels import (
    attention,
    guided_head,
    guided_logits,
    layer_ops,
    peers,
    penalties,
    tilt,
    truncate,
    value_adapter,
    variants,
)
from benchmarks.gpu.launches import Launch, LaunchShape

# Each holds CASES, by name, and `launches`: what serving can launch of its kernels, for one LaunchShape.
OPS: tuple[ModuleType, ...] = (
    guided_head,
    guided_logits,
    attention,
    truncate,
    tilt,
    penalties,
    value_adapter,
    layer_ops,
)
# These hold CASES alone: other launch parameters, and others' kernels.
BESIDE_OPS: tuple[ModuleType, ...] = (variants, peers)
ENGINE: tuple[ModuleType, ...] = (equality, speed, engine_peers)


@dataclass(frozen=True, slots=True)
class Part:
    """sizes: on the GPU. toy: in a rehearsal."""

    cases: Mapping[str, Case]
    sizes: object
    toy: object


def _cases(modules: tuple[ModuleType, ...]) -> dict[str, Case]:
    return {name: case for module in modules for name, case in module.CASES.items()}


PARTS = {
    "kernels": Part(_cases((*OPS, *BESIDE_OPS)), KernelSizes(), TOY_KERNEL_SIZES),
    "engine": Part(_cases(ENGINE), EngineSizes(), TOY_ENGINE_SIZES),
}


def ordered_cases(is_rehearsal: bool) -> dict[tuple[str, str], tuple[Case, object]]:
    """Every case by part and name, in the order in which they run, with the sizes that it takes."""
    found = {
        (name, case_name): (case, part.toy if is_rehearsal else case.narrowed(part.sizes))
        for name, part in PARTS.items()
        for case_name, case in part.cases.items()
    }
    return dict(sorted(found.items(), key=lambda item: item[1][0].place))


def serving_launches(shape: LaunchShape) -> Iterator[Launch]:
    """All that a server of this policy can launch: plain and guided by every form of head, greedy and
    sampled rows, truncated, measured, and attention."""
    for op in OPS:
        yield from op.launches(shape)


def suite_launches() -> Iterator[Launch]:
    """What the cases launch of our kernels until the peers, at their real sizes."""
    kernels, engine = KernelSizes(), EngineSizes()
    large = LaunchShape(kernels.hidden, kernels.vocab, kernels.attention, kernels.rank)
    yield from serving_launches(large)
    yield from value_adapter.launches(dataclasses.replace(large, num_heads=value_adapter.NUM_HEADS))
    yield from variants.launches(large)
    for shape in kernels.attention_checks[1:]:
        yield from attention.launches(dataclasses.replace(large, attention=shape))
    for dtype in (torch.bfloat16, torch.float32):
        yield from serving_launches(_launch_shape(engine.small, dtype, engine.rank))


def _launch_shape(size: LlamaSize, dtype: torch.dtype, rank: int) -> LaunchShape:
    heads = AttentionShape(size.heads, size.kv_heads, size.hidden // size.heads)
    return LaunchShape(size.hidden, size.vocab, heads, rank, dtype=dtype, intermediate=size.intermediate)
