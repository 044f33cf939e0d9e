"""Milliseconds of the references and of the compiled draw on the CPU: python -m benchmarks.cpu.kernels

Ends with one line of JSON: {"hardware", "threads", "vocab_size", "milliseconds": {rows: {what: median}}}.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from trimtab.kernels.compiled_draw import CompiledDraw
from trimtab.kernels.guided_logits import guided_logits
from trimtab.kernels.philox import gumbel_noise
from trimtab.kernels.truncate import truncation_threshold
from trimtab.kernels.value_adapter import value_adapter

WARM_UP, REPEATS = 10, 100
HIDDEN_SIZE, RANK = 512, 64


def median_milliseconds(call: Callable[[], object]) -> float:
    times = []
    for repeat in range(WARM_UP + REPEATS):
        start = time.perf_counter()
        with torch.inference_mode():
            call()
        if repeat >= WARM_UP:
            times.append(1e3 * (time.perf_counter() - start))
    return statistics.median(times)


def calls(num_rows: int, vocab_size: int, compiled: CompiledDraw) -> dict[str, Callable[[], object]]:
    logits, advantage = 2 * torch.randn(num_rows, vocab_size), torch.randn(num_rows, vocab_size)
    h, down = torch.randn(num_rows, HIDDEN_SIZE), torch.randn(1, RANK, HIDDEN_SIZE)
    rows, one = torch.arange(num_rows), torch.ones(num_rows)
    seeds, positions, choices = rows, rows + 9, torch.zeros_like(rows)
    tilt: dict[str, Any] = {"advantage": advantage, "advantage_row": rows, "beta": one}

    def draw(sampled: bool = True, function: Callable[..., object] = guided_logits, **tilt: Any) -> object:
        return function(
            logits,
            seeds=seeds,
            positions=positions,
            choices=choices,
            temperature=one if sampled else 0 * one,
            any_greedy=not sampled,
            any_sampled=sampled,
            **tilt,
        )

    return {
        "softmax + multinomial": lambda: torch.multinomial(logits.softmax(1), 1),
        "noise": lambda: gumbel_noise(seeds, positions, choices, vocab_size),
        "greedy": lambda: draw(sampled=False),
        "plain": draw,
        "guided": lambda: draw(**tilt),
        "guided, half the rows": lambda: draw(
            **tilt | {"advantage_row": torch.where(rows % 2 == 0, rows, -1)}
        ),
        "compiled, plain": lambda: draw(function=compiled),
        "compiled, guided": lambda: draw(function=compiled, **tilt),
        "top-k 40": lambda: truncation_threshold(logits, one, top_k=torch.full_like(rows, 40)),
        "top-p 0.9": lambda: truncation_threshold(logits, one, top_p=0.9 * one),
        "value adapter": lambda: value_adapter(h, one[:, None], down, None, ("silu",)),
    }


def hardware() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text(encoding="utf-8").splitlines() if cpuinfo.exists() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def main() -> None:
    parser = argparse.ArgumentParser(description="Time the references of the kernels on the CPU.")
    parser.add_argument("--rows", type=int, nargs="+", default=[1, 8, 32])
    parser.add_argument("--vocab-size", type=int, default=8000)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    options = parser.parse_args()
    torch.manual_seed(0)
    torch.set_num_threads(options.threads)
    # As in an engine after a prefill: malloc keeps more memory once a large block has come and gone.
    torch.empty(1 << 22)

    print(f"{hardware()}, {options.threads} threads, torch {torch.__version__}, V = {options.vocab_size}")
    table, compiled = {}, CompiledDraw(options.vocab_size)
    for num_rows in options.rows:
        measured = {
            name: round(median_milliseconds(call), 3)
            for name, call in calls(num_rows, options.vocab_size, compiled).items()
        }
        table[num_rows] = measured
        print(f"{num_rows:4d} rows: " + ", ".join(f"{name} {ms:.2f}" for name, ms in measured.items()))
    print(
        json.dumps(
            {
                "hardware": hardware(),
                "threads": options.threads,
                "vocab_size": options.vocab_size,
                "milliseconds": table,
            }
        )
    )


if __name__ == "__main__":
    main()
