"""Products of the CPU library: bytes and operations a second, by format and rows.

    python -m benchmarks.cpu.products

Shapes are of a small Llama's layers and head. Bytes are those of the stored weights; "narrow" are products
whose inputs are rounded too. The machine's own limits, measured in the same run, are reading a large tensor
and torch's product.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch

from benchmarks import common
from benchmarks.common import Document
from trimtab.kernels.cpu.library import load_library
from trimtab.kernels.cpu.weights import PackedWeight, WeightFormat

SHAPES = {"gate_up": (3072, 576), "down": (576, 1536), "lm_head": (49152, 576)}  # N, K
FORMATS: tuple[WeightFormat, ...] = ("float32", "float16", "bfloat16", "q8", "q4")
NARROW: tuple[WeightFormat, ...] = ("bfloat16", "q8", "q4")
MANY = 1 << 26  # bytes of weights that a call reads, so that no cache holds them


@dataclass(frozen=True, slots=True)
class ProductConfig:
    """rows: of x. threads: 0 leaves torch's count. repeats: calls, of which the fastest counts: a shared
    machine only ever adds. own_time: the thread's own seconds, for one thread of a busy machine.
    """

    rows: tuple[int, ...] = (1, 8, 32, 512)
    threads: int = 0
    repeats: int = 20
    own_time: bool = False
    seed: int = 0
    out: Path | None = None


@torch.inference_mode()
def measure(config: ProductConfig) -> Document:
    torch.manual_seed(config.seed)
    if config.threads:
        torch.set_num_threads(config.threads)
    library = load_library()
    library.set_num_threads(torch.get_num_threads())
    found: Document = {}
    for name, (n, k) in SHAPES.items():
        narrow = NARROW[0 if library.multiplies_bfloat16 else 1 :]
        for form, narrows in (*((form, False) for form in FORMATS), *((form, True) for form in narrow)):
            pack = partial(PackedWeight, torch.randn(n, k) * k**-0.5, form, library, narrows)
            first = pack()
            copies = [first, *(pack() for _ in range(MANY // first.nbytes))]
            for rows in config.rows:
                x, out = torch.randn(rows, k), torch.empty(rows, n)
                some = copies[: 1 if rows > 64 else None]
                seconds = fastest(lambda: [packed.product(x, out) for packed in some], config) / len(some)  # noqa: B023
                found[f"{name} {form}{' narrow' * narrows} {rows}"] = {
                    "milliseconds": seconds * 1e3,
                    "gigabytes": first.nbytes / seconds / 1e9,
                    "gigaflops": 2 * n * k * rows / seconds / 1e9,
                }
    large, x, weight = torch.randn(MANY), torch.randn(512, 576), torch.randn(3072, 576)
    limits = {
        "gigabytes": large.nbytes / fastest(large.sum, config) / 1e9,
        "gigaflops": 2 * 512 * weight.numel() / fastest(lambda: x @ weight.T, config) / 1e9,
    }
    return {"isa": library.isa, "threads": library.num_threads, "limits": limits, "products": found}


def fastest(call: Callable[[], object], config: ProductConfig) -> float:
    clock, best = time.thread_time if config.own_time else time.perf_counter, float("inf")
    for _ in range(config.repeats):
        start = clock()
        call()
        best = min(best, clock() - start)
    return best


def table(document: Document) -> str:
    limits = document["limits"]
    lines = [
        f"{document['isa']}, {document['threads']} threads; memory {limits['gigabytes']:.1f} GB/s, "
        f"torch's product {limits['gigaflops']:.0f} GFLOP/s"
    ]
    for name, one in document["products"].items():
        figures = (
            f"{one['milliseconds']:9.3f} ms {one['gigabytes']:6.1f} GB/s {one['gigaflops']:5.0f} GFLOP/s"
        )
        lines.append(f"{name:28}{figures}")
    return "\n".join(lines)


if __name__ == "__main__":
    common.main(ProductConfig, measure, table)
