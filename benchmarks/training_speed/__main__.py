"""Training speed: a head on cached features against TRL's LoRA-DPO: python -m benchmarks.training_speed

Contenders take turns, each in a process of its own; ratios are taken within a repeat. The last line is one
JSON document.
"""

from __future__ import annotations

import json
import math
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch

from benchmarks.common import Document, as_table, hardware, main, ratio_of, spread_of, take_turns
from benchmarks.cpu.subject import save_policy
from benchmarks.training_speed.contenders import SpeedConfig

Turns = Sequence[dict[str, Any]]
REACH = 1 / 10
GIB = 2.0**30


def summarise(turns: Turns, num_steps: int = 1) -> Document:
    """Medians and spreads; ratios and break-evens within each repeat.

    break_even_epochs: after how many epochs extraction is paid back by cheaper epochs, were the peer's own
    preparation free; break_even_with_reference: against preparation and epochs of both. 0: at once; None:
    never. The head's step is told apart; without a peer nothing else is.
    """
    columns = {
        f"{name}_{key}": spread_of([turn[name][key] for turn in turns]).as_dict()
        for name in ("head", "lora")
        if name in turns[0]
        for key in ("epoch_seconds", "epoch_cpu_seconds", "prepare_seconds", "peak_bytes", "idle_bytes")
    }
    for key in ("epoch_seconds", "epoch_cpu_seconds", "product_cpu_seconds"):
        by_turn = [turn["head"].get(key, 0.0) / num_steps for turn in turns]
        columns[f"head_step_{key.removeprefix('epoch_')}"] = spread_of(by_turn).as_dict()
    if "lora" not in turns[0]:
        return columns
    return {
        **columns,
        "ratio": _ratio(turns, "epoch_seconds"),
        "cpu_ratio": _ratio(turns, "epoch_cpu_seconds"),
        "memory_ratio": _ratio(turns, "peak_bytes"),
        "break_even_epochs": _median(turns, lambda turn: break_even(turn, reference=False)),
        "break_even_with_reference": _median(turns, lambda turn: break_even(turn, reference=True)),
        "reach": REACH,
    }


def _ratio(turns: Turns, key: str) -> dict[str, float]:
    columns = ([turn[name][key] for turn in turns] for name in ("head", "lora"))
    return ratio_of(*columns).as_dict()


def break_even(turn: dict[str, Any], *, reference: bool) -> float:
    """Epochs n with prepare + n · epoch of the head equal to that of the peer; infinite where there is none.

    By hand: extraction 10 s and 1 s an epoch against 6 s an epoch: n = 10/5 = 2; if the peer's preparation
    takes 5 s too, n = (10 − 5)/5 = 1.
    """
    head, lora = turn["head"], turn["lora"]
    ahead = head["prepare_seconds"] - (lora["prepare_seconds"] if reference else 0.0)
    gain = lora["epoch_seconds"] - head["epoch_seconds"]
    return max(ahead, 0.0) / gain if gain > 0 else math.inf


def _median(turns: Turns, of: Callable[[dict[str, Any]], float]) -> float | None:
    median = statistics.median(of(turn) for turn in turns)
    return median if math.isfinite(median) else None


def as_markdown(report: Document) -> str:
    """A table: medians (p10…p90)."""

    def cell(key: str, unit: float = 1.0) -> dict[str, float]:
        return {name: value / unit for name, value in report[key].items()}

    def both(key: str, unit: float = 1.0) -> tuple[dict[str, float], dict[str, float]]:
        return cell(f"head_{key}", unit), cell(f"lora_{key}", unit)

    if "ratio" not in report:
        rows: list[list[object]] = [
            ["a step, s", cell("head_step_seconds")],
            ["the same, CPU s", cell("head_step_cpu_seconds")],
            ["of it the logits' product, CPU s", cell("head_step_product_cpu_seconds")],
            ["peak memory, GiB", cell("head_peak_bytes", GIB)],
            ["of it before training, GiB", cell("head_idle_bytes", GIB)],
        ]
        return as_table(["head, cached features", ""], rows)
    rows = [
        ["epoch, s", *both("epoch_seconds"), cell("ratio")],
        ["the same, CPU s", *both("epoch_cpu_seconds"), cell("cpu_ratio")],
        ["once: features, or reference, s", *both("prepare_seconds"), ""],
        ["peak memory, GiB", *both("peak_bytes", GIB), cell("memory_ratio")],
        ["of it before training, GiB", *both("idle_bytes", GIB), ""],
    ]
    lines = [as_table(["", "head, cached features", "TRL LoRA-DPO", "head ÷ TRL"], rows)]
    paid, with_reference = report["break_even_epochs"], report["break_even_with_reference"]
    for text, epochs in (("", paid), (", TRL's reference counted", with_reference)):
        told = "never" if epochs is None else f"after {epochs:.2g} epochs"
        lines.append(f"\nextraction is paid back{text}: {told}")
    return "\n".join(lines)


def measure(config: SpeedConfig) -> Document:
    with tempfile.TemporaryDirectory() as scratch:
        model = Path(scratch) / "model"
        save_policy(model, config.sizes, config.seed)
        runs: dict[str, Callable[[int], dict[str, Any]]] = {
            name: partial(run_turn, name, config, model) for name in config.contenders
        }
        by_name = take_turns(runs, config.repeats, progress="training speed")
    turns = [dict(zip(by_name, turn, strict=True)) for turn in zip(*by_name.values(), strict=True)]
    peers = ("trl", "peft") if "lora" in config.contenders else ()
    machine = hardware(torch.device(config.device), *peers) | {"threads": str(turns[0]["head"]["threads"])}
    return {
        "kind": "trimtab training speed",
        "machine": machine,
        "turns": turns,
        **summarise(turns, config.num_steps),
    }


def run_turn(name: str, config: SpeedConfig, model: Path, turn: int) -> dict[str, Any]:
    """A turn in a process of its own. Raises SystemExit with what it said where it failed."""
    command = [
        sys.executable,
        "-m",
        "benchmarks.training_speed.contenders",
        name,
        config.to_json(),
        str(model),
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"error: {name} failed:\n{done.stderr[-2000:]}")
    found: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
    return found


if __name__ == "__main__":
    main(SpeedConfig, measure, as_markdown)
