"""Time a head's training on cached features against TRL's LoRA-DPO: python -m benchmarks.training_speed

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
from importlib.metadata import version
from pathlib import Path
from typing import Any

import tyro
from tqdm.auto import tqdm

from benchmarks.cpu.__main__ import hardware
from benchmarks.cpu.subject import save_policy
from benchmarks.training_speed.contenders import SpeedConfig
from trimtab.guidance.files import write_json

Turns = Sequence[dict[str, Any]]
REACH = 1 / 10


def summarise(turns: Turns, num_steps: int = 1) -> dict[str, Any]:
    """Medians with the least and the most; ratios and break-evens within each repeat.

    break_even_epochs: after how many epochs extraction is paid back by cheaper epochs, were the peer's own
    preparation free; break_even_with_reference: against preparation and epochs of both. 0: at once; None:
    never. The head's step is told apart; without a peer nothing else is.
    """
    columns = {
        f"{name}_{key}": spread([turn[name][key] for turn in turns])
        for name in ("head", "lora")
        if name in turns[0]
        for key in ("epoch_seconds", "epoch_cpu_seconds", "prepare_seconds", "peak_bytes", "idle_bytes")
    }
    for key in ("epoch_seconds", "epoch_cpu_seconds", "product_cpu_seconds"):
        by_turn = [turn["head"].get(key, 0.0) / num_steps for turn in turns]
        columns[f"head_step_{key.removeprefix('epoch_')}"] = spread(by_turn)
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


def spread(values: Sequence[float]) -> dict[str, float]:
    return {"median": statistics.median(values), "least": min(values), "most": max(values)}


def _ratio(turns: Turns, key: str) -> dict[str, float]:
    return spread([turn["head"][key] / turn["lora"][key] for turn in turns])


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


def as_markdown(report: dict[str, Any]) -> str:
    """A table: medians (least…most)."""

    def cell(name: str, unit: float = 1.0) -> str:
        value = report[name]
        return "{:.3g} ({:.3g}…{:.3g})".format(*(value[key] / unit for key in ("median", "least", "most")))

    gib = 2.0**30
    if "ratio" not in report:
        return "\n".join(
            [
                "| head, cached features | |",
                "|---|---|",
                f"| a step, s | {cell('head_step_seconds')} |",
                f"| the same, CPU s | {cell('head_step_cpu_seconds')} |",
                f"| of it the logits' product, CPU s | {cell('head_step_product_cpu_seconds')} |",
                f"| peak memory, GiB | {cell('head_peak_bytes', gib)} |",
                f"| of it before training, GiB | {cell('head_idle_bytes', gib)} |",
            ]
        )
    lines = [
        "| | head, cached features | TRL LoRA-DPO | head ÷ TRL |",
        "|---|---|---|---|",
        f"| epoch, s | {cell('head_epoch_seconds')} | {cell('lora_epoch_seconds')} | {cell('ratio')} |",
        f"| the same, CPU s | {cell('head_epoch_cpu_seconds')} | {cell('lora_epoch_cpu_seconds')} "
        f"| {cell('cpu_ratio')} |",
        f"| once: features, or reference, s | {cell('head_prepare_seconds')} "
        f"| {cell('lora_prepare_seconds')} | |",
        f"| peak memory, GiB | {cell('head_peak_bytes', gib)} | {cell('lora_peak_bytes', gib)} "
        f"| {cell('memory_ratio')} |",
        f"| of it before training, GiB | {cell('head_idle_bytes', gib)} | {cell('lora_idle_bytes', gib)} | |",
    ]
    paid, with_reference = report["break_even_epochs"], report["break_even_with_reference"]
    for text, epochs in (("", paid), (", TRL's reference counted", with_reference)):
        told = "never" if epochs is None else f"after {epochs:.2g} epochs"
        lines.append(f"\nextraction is paid back{text}: {told}")
    return "\n".join(lines)


def main(config: SpeedConfig) -> None:
    turns: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as scratch:
        model = Path(scratch) / "model"
        save_policy(model, config.sizes, config.seed)
        for repeat in tqdm(range(config.repeats), desc="training speed", unit="repeat"):
            order = config.contenders if repeat % 2 == 0 else config.contenders[::-1]
            turns.append({name: run_turn(name, config, model) for name in order})
    machine = hardware() | {"threads": str(turns[0]["head"]["threads"]), "device": config.device}
    if "lora" in config.contenders:
        machine |= {"trl": version("trl"), "peft": version("peft")}
    report = {
        "kind": "trimtab training speed",
        "machine": machine,
        "config": json.loads(config.to_json()),
        "turns": turns,
        **summarise(turns, config.num_steps),
    }
    if config.out is not None:
        write_json(config.out, report)
    print(f"{report['machine']}\n\n{as_markdown(report)}\n")
    print(json.dumps(report))


def run_turn(name: str, config: SpeedConfig, model: Path) -> dict[str, Any]:
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
    turn: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
    return turn


if __name__ == "__main__":
    main(tyro.cli(SpeedConfig, description=__doc__))
