"""Kernels on the CPU: times of the references and of the C++ backend: python -m benchmarks.cpu.kernels"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from benchmarks import common
from benchmarks.common import Document
from benchmarks.gpu.timing import Repeats, time_calls
from trimtab.kernels.guided_logits import guided_logits
from trimtab.kernels.philox import gumbel_noise
from trimtab.kernels.tilt import solve_tilt
from trimtab.kernels.truncate import truncation_threshold
from trimtab.kernels.value_adapter import value_adapter

WARM_UP = 10
HIDDEN_SIZE, RANK = 512, 64


@dataclass(frozen=True, slots=True)
class KernelConfig:
    """rows: of a batch. threads: of torch; 0 leaves its own choice. repeats: calls, after some to warm up."""

    rows: tuple[int, ...] = (1, 8, 32)
    vocab_size: int = 8000
    threads: int = 0
    repeats: int = 100
    seed: int = 0
    out: Path | None = None


@torch.inference_mode()
def measure(config: KernelConfig) -> Document:
    torch.manual_seed(config.seed)
    if config.threads:
        torch.set_num_threads(config.threads)
    # As in an engine after a prefill: malloc keeps more memory once a large block has come and gone.
    torch.empty(1 << 22)
    repeats = Repeats(WARM_UP, config.repeats)
    return {
        "microseconds": {
            str(num_rows): {
                name: time_calls(common.CPU, [call], repeats).as_dict()
                for name, call in calls(num_rows, config.vocab_size).items()
            }
            for num_rows in config.rows
        }
    }


def calls(num_rows: int, vocab_size: int) -> dict[str, Callable[[], object]]:
    logits, advantage = 2 * torch.randn(num_rows, vocab_size), torch.randn(num_rows, vocab_size)
    h, down = torch.randn(num_rows, HIDDEN_SIZE), torch.randn(1, RANK, HIDDEN_SIZE)
    rows, one = torch.arange(num_rows), torch.ones(num_rows)
    seeds, positions, choices = rows, rows + 9, torch.zeros_like(rows)
    tilt: dict[str, Any] = {"advantage": advantage, "advantage_row": rows, "beta": one}

    def draw(sampled: bool = True, **tilt: Any) -> object:
        return guided_logits(
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
        "C++, greedy": lambda: draw(sampled=False, backend="cpu"),
        "C++, plain": lambda: draw(backend="cpu"),
        "C++, guided": lambda: draw(backend="cpu", **tilt),
        "C++, top-p 0.9": lambda: truncation_threshold(logits, one, top_p=0.9 * one, backend="cpu"),
        "C++, strengths under a KL cap": lambda: solve_tilt(
            logits, advantage, rows, strength=4 * one, kl_cap=0.05 * one, backend="cpu"
        ),
        "top-k 40": lambda: truncation_threshold(logits, one, top_k=torch.full_like(rows, 40)),
        "top-p 0.9": lambda: truncation_threshold(logits, one, top_p=0.9 * one),
        "strengths under a KL cap": lambda: solve_tilt(
            logits, advantage, rows, strength=4 * one, kl_cap=0.05 * one
        ),
        "value adapter": lambda: value_adapter(h, one[:, None], down, None, ("silu",)),
    }


def table(found: Document) -> str:
    by_rows = found["microseconds"]
    names = next(iter(by_rows.values()))
    rows = [[name, *(1e-3 * at[name]["median"] for at in by_rows.values())] for name in names]
    return common.as_table(["ms a call", *(f"{num_rows} rows" for num_rows in by_rows)], rows)


if __name__ == "__main__":
    common.main(KernelConfig, measure, table)
