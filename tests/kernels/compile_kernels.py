"""Compiles what serving can launch for one compute capability, without a GPU, and prints what came out.

A program of its own, since kernels that were imported with TRITON_INTERPRET set cannot be compiled.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import re
from collections.abc import Iterator
from typing import Any

import torch

from benchmarks.gpu.inputs import AttentionShape
from benchmarks.gpu.kernels import attention, guided_head, value_adapter
from benchmarks.gpu.launches import Launch, LaunchShape
from benchmarks.gpu.registry import serving_launches
from benchmarks.gpu.stand_in import Compiled, compile_launches

LLAMA = LaunchShape(4096, 128256, AttentionShape(32, 8, 128))
ATTENTION = (
    AttentionShape(32, 8, 64),
    AttentionShape(8, 8, 128),
    AttentionShape(64, 8, 128),
    AttentionShape(64, 8, 256),
    AttentionShape(32, 8, 128, window=512, softcap=30.0),
)
# Of the fused head every form, every tile, and every kind of draw once; the slow test has them all.
HEADS = (
    "16 rows, sampled, d=",
    "plain, 16 rows",
    "plain, 64 rows, sampled, d=",
    "both, 32 rows, sampled, d=",
    "both, 64 rows, sampled, d=",
)
DTYPES = (torch.bfloat16, torch.float16, torch.float32)


def quick(capability: int) -> Iterator[Launch]:
    """Hopper: the launches of a policy in bf16, and one of each kind in fp32. Others: one of each kind."""
    if capability == 90:
        for launch in serving_launches(LLAMA):
            is_head = launch.name.startswith("guided_head")
            if not is_head or any(part in launch.name for part in HEADS):
                yield launch
    else:
        yield from _few(guided_head.launches(LLAMA), "16 rows, sampled", "both, 32 rows, sampled")
        yield from attention.launches(LLAMA)
    yield from _few(value_adapter.launches(dataclasses.replace(LLAMA, num_heads=3)), "silu, values")
    for shape in ATTENTION:
        yield from attention.launches(dataclasses.replace(LLAMA, attention=shape))
    wide = dataclasses.replace(LLAMA, dtype=torch.float32)
    yield from _few(guided_head.launches(wide), "both, 16 rows, sampled")
    for shape in (ATTENTION[0], ATTENTION[3]):
        yield from attention.launches(dataclasses.replace(wide, attention=shape))


def everything(capability: int) -> Iterator[Launch]:
    """All shapes in all types."""
    for dtype in DTYPES:
        shape = dataclasses.replace(LLAMA, dtype=dtype)
        for launch in serving_launches(shape):
            if capability >= 90 or "64 rows" not in launch.name:  # which the launcher splits there
                yield launch
        yield from value_adapter.launches(dataclasses.replace(shape, num_heads=3))
        for heads in ATTENTION:
            yield from attention.launches(dataclasses.replace(shape, attention=heads))


def _few(launches: Iterator[Launch], *parts: str) -> Iterator[Launch]:
    return (launch for launch in launches if any(part in launch.name for part in parts))


def as_dict(program: Compiled) -> dict[str, Any]:
    found = dataclasses.asdict(program)
    del found["ttgir"], found["folder"], found["seconds"]
    found["constants"] = {name: str(value) for name, value in program.constants.items()}
    found["warps"] = sorted(set(re.findall(r"nvidia_mma<.*?warpsPerCTA = (\[[^]]*\])", program.ttgir)))
    return found


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("capability", type=int)
    parser.add_argument("--everything", action="store_true")
    options = parser.parse_args()
    launches = (everything if options.everything else quick)(options.capability)
    programs = compile_launches([launch.run for launch in launches], options.capability)
    print(json.dumps([as_dict(program) for program in programs]))
