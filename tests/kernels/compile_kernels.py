"""Compiles every Triton kernel for an H100, without a GPU, and prints what ptxas says of each as JSON.

A program of its own, since kernels that were imported with TRITON_INTERPRET set cannot be compiled.
"""

from __future__ import annotations

import json
import re
import subprocess
import tempfile
from pathlib import Path
from typing import Any

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from trimtab.kernels import base_statistics, guided_logits, value_adapter

TARGET = GPUTarget("cuda", 90, 32)
PTXAS = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "ptxas"

INTEGERS = {"seeds", "positions", "choices", "advantage_row", "best_tokens", "token"}
SCALARS = {"logits_stride", "advantage_stride", "h_stride", "weights_stride"}
SCALARS |= {"vocab_size", "vocab_offset", "num_tiles", "num_rows"}

BASE = {"tilts": True, "block": base_statistics.BLOCK_V}
DRAW = BASE | {"truncates": True, "samples": True, "purpose": 0, "min_temperature": 1e-6}
MERGE = {"tilts": True, "tiles": 128}
BLOCKS = {
    "block_b": value_adapter.BLOCK_B,
    "block_n": value_adapter.BLOCK_N,
    "block_k": value_adapter.BLOCK_K,
}
HEADS = BLOCKS | {"num_heads": 3, "rank": 64}
BF16 = {"h": "*bf16", "down": "*bf16", "up": "*bf16"}

KERNELS: dict[str, tuple[Any, dict[str, Any], dict[str, str]]] = {
    "base_statistics tiles": (base_statistics._tiles, BASE, {}),
    "base_statistics merge": (base_statistics._merge, MERGE, {}),
    "guided_logits tiles": (guided_logits._tiles, DRAW, {}),
    "guided_logits tiles plain": (guided_logits._tiles, DRAW | {"tilts": False, "truncates": False}, {}),
    "guided_logits merge": (guided_logits._merge, MERGE | {"weak_lift": 1e-5, "no_token": -1}, {}),
    "value_adapter down": (value_adapter._down, HEADS | {"depth": 4096, "silu_heads": 2}, {}),
    "value_adapter down bf16": (value_adapter._down, HEADS | {"depth": 4096, "silu_heads": 2}, BF16),
    "value_adapter up": (value_adapter._up, HEADS | {"width": 4096}, {}),
    "value_adapter up bf16": (value_adapter._up, HEADS | {"width": 4096}, BF16),
    "value_adapter values": (value_adapter._values, BLOCKS | {"num_heads": 3, "depth": 4096}, BF16),
}


def type_of(name: str) -> str:
    return "i32" if name in SCALARS else "*i64" if name in INTEGERS else "*fp32"


def report(kernel: Any, constants: dict[str, Any], types: dict[str, str]) -> dict[str, Any]:
    names = kernel.arg_names
    signature = {name: "constexpr" if name in constants else types.get(name, type_of(name)) for name in names}
    source = ASTSource(kernel, signature, {(names.index(name),): value for name, value in constants.items()})
    ptx = triton.compile(source, target=TARGET).asm["ptx"]
    with tempfile.NamedTemporaryFile("w", suffix=".ptx") as file:
        file.write(ptx)
        file.flush()
        command = [str(PTXAS), "-v", "-arch=sm_90a", file.name, "-o", "/dev/null"]
        said = subprocess.run(command, check=True, capture_output=True, text=True).stderr
    spills = [int(count) for count in re.findall(r"(\d+) bytes spill", said)]
    assert len(spills) == 2, said
    (registers,) = re.findall(r"Used (\d+) registers", said)
    return {"spilled_bytes": sum(spills), "registers": int(registers), "uses_tensor_cores": "mma" in ptx}


if __name__ == "__main__":
    print(json.dumps({name: report(*kernel) for name, kernel in KERNELS.items()}))
