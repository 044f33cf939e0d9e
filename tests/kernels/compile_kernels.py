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
from benchmarks.gpu.launches import (
    Launch,
    LaunchShape,
    adapter_launches,
    attention_launches,
    head_launches,
    serving_launches,
)
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
    "tied and low-rank, 32 rows, sampled, d=",
    "tied and low-rank, 64 rows, sampled, d=",
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
        yield from _few(head_launches(LLAMA), "16 rows, sampled", "and low-rank, 32 rows, sampled")
        yield from attention_launches(LLAMA.attention, torch.bfloat16)
    yield from _few(adapter_launches(dataclasses.replace(LLAMA, num_heads=3)), "silu, values")
    for shape in ATTENTION:
        yield from attention_launches(shape, torch.bfloat16)
    wide = dataclasses.replace(LLAMA, dtype=torch.float32)
    yield from _few(head_launches(wide), "tied and low-rank, 16 rows, sampled")
    for shape in (ATTENTION[0], ATTENTION[3]):
        yield from attention_launches(shape, torch.float32)


def everything(capability: int) -> Iterator[Launch]:
    """All shapes in all types."""
    for dtype in DTYPES:
        shape = dataclasses.replace(LLAMA, dtype=dtype)
        for launch in serving_launches(shape):
            if capability >= 90 or "64 rows" not in launch.name:  # which the launcher splits there
                yield launch
        yield from adapter_launches(dataclasses.replace(shape, num_heads=3))
        for attention in ATTENTION:
            yield from attention_launches(attention, dtype)


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
