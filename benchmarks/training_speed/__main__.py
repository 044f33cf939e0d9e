"""Time a head's training on cached features against TRL's LoRA-DPO: python -m benchmarks.training_speed

Contenders take turns, each in a process of its own; ratios are taken within a repeat. The last line is one
JSON document.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from importlib.metadata import version
from pathlib import Path
from typing import Any

import tyro
from tqdm.auto import tqdm

from benchmarks.cpu.__main__ import hardware
from benchmarks.cpu.subject import save_policy
from benchmarks.training_speed.config import SpeedConfig
from benchmarks.training_speed.report import as_markdown, summarise


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
        new = config.out.with_name(config.out.name + ".new")
        new.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
        os.replace(new, config.out)
    print(f"{report['machine']}\n\n{as_markdown(report)}\n")
    print(json.dumps(report))


def run_turn(name: str, config: SpeedConfig, model: Path) -> dict[str, Any]:
    """A turn in a process of its own. Raises SystemExit with what it said where it failed."""
    command = [
        sys.executable,
        "-m",
        "benchmarks.training_speed.worker",
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
