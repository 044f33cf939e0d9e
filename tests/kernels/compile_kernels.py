"""Compiles every Triton kernel for Hopper and Ampere, without a GPU, and prints as JSON what ptxas says.

A program of its own, since kernels that were imported with TRITON_INTERPRET set cannot be compiled.
"""

from __future__ import annotations

import json
import re
import subprocess
import tempfile
from pathlib import Path
from typing import Any

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from trimtab.kernels import (
    base_statistics,
    guided_head,
    guided_logits,
    paged_attention,
    store_kv,
    tile_reduce,
    tilt,
    truncate,
    value_adapter,
)

TARGETS = {90: "sm_90a", 80: "sm_80"}
PTXAS = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "ptxas"

INTEGERS = {"seeds", "positions", "choices", "advantage_row", "best_tokens", "token"}
SCALARS = {"logits_stride", "advantage_stride", "h_stride", "weights_stride"}
SCALARS |= {"vocab_size", "vocab_offset", "num_tiles", "num_rows"}

BASE = {"tilts": True, "block": base_statistics.BLOCK_V}
DRAW = BASE | {"truncates": True, "samples": True, "entropy": True, "purpose": 0, "min_temperature": 1e-6}
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
    "value_adapter down": (value_adapter._down, HEADS | {"depth": 4096, "silu_heads": 2}, {}),
    "value_adapter down bf16": (value_adapter._down, HEADS | {"depth": 4096, "silu_heads": 2}, BF16),
    "value_adapter up": (value_adapter._up, HEADS | {"width": 4096}, {}),
    "value_adapter up bf16": (value_adapter._up, HEADS | {"width": 4096}, BF16),
    "value_adapter values": (value_adapter._values, BLOCKS | {"num_heads": 3, "depth": 4096}, BF16),
}

ATTENTION_INTEGERS = {"block_tables": "*i64", "slots": "*i64", "query_starts": "*i32", "context_lens": "*i32"}
ATTENTION_INTEGERS |= {name: "i32" for name in paged_attention._prefill.arg_names if "stride" in name}
ATTENTION_INTEGERS |= {name: "i32" for name in store_kv._store.arg_names if "stride" in name}
# Strides of queries, keys and values: multiples of 16 elements, as pointers are of 16 bytes.
ALIGNED = {name for name, kind in ATTENTION_INTEGERS.items() if kind == "i32"} - {"table_stride"}


def attention_kernels(
    dim: int, group: int, dtype: torch.dtype = torch.bfloat16, **more: Any
) -> dict[str, tuple[Any, dict[str, Any], dict[str, str]]]:
    """The two large kernels of paged attention for 8 key heads, and what they are launched with."""
    config = paged_attention._config(dim, dtype)
    shape = {"num_heads": 8 * group, "group": group, "dim": dim, "padded_dim": dim, "block_size": 16}
    shape |= {"value_dim": dim, "padded_value_dim": dim, "gain": 0.1, "cap": None, "window": None} | more
    splits = {"num_splits": 16, "min_chunk": paged_attention.MIN_CHUNK}
    decode = {"block_m": 16, "block_n": config.decode_keys}
    prefill = {
        "block_m": config.prefill_queries,
        "block_n": config.prefill_keys,
        "search": 256,
        "min_queries": 2,
    }
    prefill["tile_queries"] = config.prefill_queries // group
    pointers = ("query", "key_cache", "value_cache", "result")
    types = dict.fromkeys(pointers, "*fp32" if dtype == torch.float32 else "*bf16") | ATTENTION_INTEGERS
    name = f"{dim} x{group} {str(dtype).removeprefix('torch.')}{' window cap' if more else ''}"
    OPTIONS[f"decode {name}"] = {"num_warps": config.decode_warps, "num_stages": config.decode_stages}
    OPTIONS[f"prefill {name}"] = {"num_warps": config.prefill_warps, "num_stages": config.prefill_stages}
    return {
        f"decode {name}": (paged_attention._decode, shape | splits | decode, types),
        f"prefill {name}": (paged_attention._prefill, shape | prefill, types),
    }


OPTIONS: dict[str, dict[str, int]] = {}  # of kernels that are not launched with Triton's own
for size, heads in ((64, 4), (128, 1), (128, 4), (128, 8), (256, 8)):
    KERNELS |= attention_kernels(size, heads)
KERNELS |= attention_kernels(128, 4, window=512, cap=30.0)
KERNELS |= attention_kernels(64, 4, torch.float32) | attention_kernels(256, 4, torch.float32)
MERGE_SPLITS = {"window": 512, "num_heads": 32, "value_dim": 256, "padded_value_dim": 256, "num_splits": 32}
MERGE_SPLITS |= {"min_chunk": paged_attention.MIN_CHUNK, "block_n": 32}
KERNELS["merge of splits"] = (paged_attention._merge, MERGE_SPLITS, ATTENTION_INTEGERS | {"out": "*bf16"})
STORE = {"num_heads": 8, "dim": 128, "value_dim": 96, "block": store_kv.BLOCK}
CACHES = dict.fromkeys(("keys", "values", "key_cache", "value_cache"), "*bf16")
KERNELS["store_kv"] = (store_kv._store, STORE, ATTENTION_INTEGERS | CACHES)

HEAD_SCALARS = ("num_rows", "vocab_size", "vocab_offset", "num_tiles")
HEAD_STRIDES = ("h_stride", "column_stride", "weight_stride", "inner_stride", "up_stride")
HEAD_MATRICES = ("h", "column", "weight", "inner", "up")
ALIGNED |= set(HEAD_STRIDES)


def head_kernel(
    rows: int, dtype: torch.dtype = torch.bfloat16, tied: bool = False, rank: int = 0, **more: Any
) -> dict[str, tuple[Any, dict[str, Any], dict[str, str]]]:
    """The fused head for a program's number of rows, and what it is launched with."""
    parts = f"{' tied' if tied else ''}{' low-rank' if rank else ''}"
    name = f"head {rows} {str(dtype).removeprefix('torch.')}{parts}"
    constants = {"depth": 4096, "rank": rank, "tied": tied, "samples": True, "entropy": True, "purpose": 0}
    constants |= {"min_temperature": 1e-6, "block_v": guided_head.BLOCK_V, "group": guided_head.GROUP}
    constants |= {"block_b": rows, "block_k": guided_head.BLOCK_BYTES // dtype.itemsize}
    absent = () if tied or rank else ("pivot", "beta")
    absent += () if tied else ("column",)
    absent += () if rank else ("inner", "up")
    constants |= dict.fromkeys(absent)
    types = dict.fromkeys(HEAD_MATRICES, "*fp32" if dtype == torch.float32 else "*bf16") | {"tokens": "*i64"}
    types |= dict.fromkeys((*HEAD_SCALARS, *HEAD_STRIDES), "i32")
    stages = guided_head._num_stages(constants["block_b"], dtype)
    OPTIONS[name] = {"num_warps": guided_head.NUM_WARPS, "num_stages": stages, "enable_fp_fusion": False}
    return {name: (guided_head._tiles, constants | more, types)}


KERNELS |= head_kernel(16) | head_kernel(64) | head_kernel(64, tied=True)
for num_rows in (16, 32, 64):
    KERNELS |= head_kernel(num_rows, tied=True, rank=64)
KERNELS |= head_kernel(16, torch.float32, tied=True, rank=64)
HOPPER_ALONE = {name for name in KERNELS if name.startswith("head 64")}
FIRST = {"depth": 4096, "rank": 64, "tied": True, "block": guided_head.BLOCK_PIVOT}
FIRST_TYPES = dict.fromkeys(HEAD_MATRICES, "*bf16") | dict.fromkeys(HEAD_STRIDES, "i32")
KERNELS["head pivot"] = (guided_head._first_advantage, FIRST, FIRST_TYPES)
REDUCE = {"tilts": True, "entropy": True, "weak_lift": 1e-5, "no_token": -1, "tiles": 2048}
REDUCE_TYPES = {"tokens": "*i64"} | dict.fromkeys(HEAD_SCALARS, "i32")
KERNELS["tile_reduce"] = (tile_reduce._merge, REDUCE, REDUCE_TYPES)
KERNELS["tile_reduce one tile"] = (tile_reduce._merge, REDUCE | {"num_tiles": 1, "tiles": 1}, REDUCE_TYPES)

TILT = {"max_evaluations": 8, "slack": 2.0**-8, "near": 0.5, "weak": 1e-3, "tiny": 1e-30}
TILT |= {"block": tilt.BLOCK_V}
KERNELS["tilt"] = (tilt._solve_rows, TILT, {})
KERNELS["tilt cap alone"] = (tilt._solve_rows, TILT | {"lift": None}, {})
CUT = {"draws": True, "purpose": 0, "min_temperature": 1e-6, "no_token": -1, "block": truncate.BLOCK_V}
CUT_TYPES = {"top_k": "*i64", "slot_tokens": "*i32", "stride": "i32"}
NO_KEYS = {"draws": False, "seeds": None, "positions": None, "choices": None}
KERNELS["truncate and draw"] = (truncate._rows, CUT, CUT_TYPES | {"out": "*i64"})
KERNELS["truncate"] = (truncate._rows, CUT | NO_KEYS, CUT_TYPES)
for name in ("tilt", "tilt cap alone"):
    OPTIONS[name] = {"num_warps": tilt.NUM_WARPS}
for name in ("truncate and draw", "truncate"):
    OPTIONS[name] = {"num_warps": truncate.NUM_WARPS, "enable_fp_fusion": False}


def type_of(name: str) -> str:
    return "i32" if name in SCALARS else "*i64" if name in INTEGERS else "*fp32"


def report(
    kernel: Any, constants: dict[str, Any], types: dict[str, str], options: dict[str, int], capability: int
) -> dict[str, Any]:
    names = kernel.arg_names
    signature = {name: "constexpr" if name in constants else types.get(name, type_of(name)) for name in names}
    known = {(names.index(name),): value for name, value in constants.items()}
    aligned = [name for name, kind in signature.items() if kind.startswith("*") or name in ALIGNED]
    hints = {(names.index(name),): [["tt.divisibility", 16]] for name in aligned}
    source = ASTSource(kernel, signature, known, hints)
    compiled = triton.compile(source, target=GPUTarget("cuda", capability, 32), options=options)
    ptx = compiled.asm["ptx"]
    with tempfile.NamedTemporaryFile("w", suffix=".ptx") as file:
        file.write(ptx)
        file.flush()
        command = [str(PTXAS), "-v", f"-arch={TARGETS[capability]}", file.name, "-o", "/dev/null"]
        said = subprocess.run(command, check=True, capture_output=True, text=True).stderr
    spills = [int(count) for count in re.findall(r"(\d+) bytes spill", said)]
    assert len(spills) == 2, said
    (registers,) = re.findall(r"Used (\d+) registers", said)
    return {
        "spilled_bytes": sum(spills),
        "registers": int(registers),
        "shared_bytes": compiled.metadata.shared,
        "uses_tensor_cores": "mma" in ptx,
        "warps": sorted(set(re.findall(r"nvidia_mma<.*?warpsPerCTA = (\[[^]]*\])", compiled.asm["ttgir"]))),
    }


if __name__ == "__main__":
    print(
        json.dumps(
            {
                f"{name} sm_{capability}": report(*kernel, OPTIONS.get(name, {}), capability)
                for name, kernel in KERNELS.items()
                for capability in TARGETS
                if capability >= 90 or name not in HOPPER_ALONE
            }
        )
    )
