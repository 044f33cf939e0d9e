"""Rows for training tests, and a configuration that trains on them in a second."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

from trimtab.guidance.training.config import (
    AdvantageConfig,
    OptimiserConfig,
    RewardConfig,
    TrainConfig,
    ValueConfig,
)

LETTERS = "abdefghijklmnopqr"
WANTED = "c"
QUICK = OptimiserConfig(epochs=2, batch_size=8, learning_rate=1e-2)


def write_rows(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def reply(draw: random.Random, *, wanted: bool) -> str:
    """Four to eight letters; the wanted one is among them, or not."""
    letters = draw.choices(LETTERS, k=draw.randint(4, 8))
    if wanted:
        letters[draw.randrange(len(letters))] = WANTED
    return " ".join(letters)


def make_rows(folder: Path, num_prompts: int = 22, seed: int = 0) -> None:
    """preferences, rankings, unpaired, rollouts and prompts as .jsonl, all about the wanted letter."""
    draw = random.Random(seed)
    prompts = [f"{a} {b}" for a in LETTERS for b in LETTERS][:num_prompts]
    both = {prompt: (reply(draw, wanted=True), reply(draw, wanted=False)) for prompt in prompts}
    rows: dict[str, list[dict[str, Any]]] = {
        "preferences": [{"prompt": p, "chosen": good, "rejected": bad} for p, (good, bad) in both.items()],
        "rankings": [
            {"prompt": p, "responses": [bad, good, bad + " a"], "ranks": [2, 1, 3]}
            for p, (good, bad) in both.items()
        ],
        "unpaired": [
            {"prompt": p, "completion": pair[index], "label": index == 0}
            for p, pair in both.items()
            for index in range(2)
        ],
        "rollouts": [
            {"prompt": p, "completion": text, "reward": float(text.split().count(WANTED)) + len(text) / 100}
            for p, pair in both.items()
            for text in pair
        ],
        "prompts": [{"prompt": p} for p in prompts],
    }
    for kind, some in rows.items():
        write_rows(folder / f"{kind}.jsonl", some)


def quick_config(folder: Path, policy: Path, name: str = "run", **changes: Any) -> TrainConfig:
    """Trains on preferences.jsonl in `folder`, if nothing else is asked for."""
    settings: dict[str, Any] = {
        "name": "c-lover",
        "model": policy,
        "preferences": folder / "preferences.jsonl",
        "head_folder": folder / name / "head",
        "run_folder": folder / name / "run",
        "advantage": AdvantageConfig(rank=4, optimiser=QUICK),
        "reward": RewardConfig(form="mlp", width=8, optimiser=QUICK),
        "value": ValueConfig(width=8, optimiser=QUICK),
        "held_out": 0.2,
        "show_progress": False,
    }
    return TrainConfig(**(settings | changes))
