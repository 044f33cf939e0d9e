"""`trimtab train --lora`: the policy itself fine-tuned, the baseline that heads must face."""

from __future__ import annotations

import importlib.util
import json
import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from safetensors import SafetensorError

from trimtab.guidance.bundled import MODEL_DIR
from trimtab.guidance.training.lora.config import LoraConfig
from trimtab.server.commands.errors import UserError
from trimtab.server.commands.flags import parse
from trimtab.server.commands.model import BUNDLED
from trimtab.server.commands.whole_file import write_text

POINTS_FILE = "points.json"
_EXTRA = ("trl", "peft")


@dataclass(frozen=True, kw_only=True)
class TrainLoraConfig(LoraConfig):
    """Fine-tunes the policy itself with low-rank adapters, by TRL's trainers: the baseline for heads.

    DPO on pairs, and a curve of merged policies for `trimtab eval` to draw beside a head's:

      trimtab train --lora --model M --preferences pairs.jsonl --out runs/lora \\
        --merge --scales 0.5 1 2 --measure prompts.jsonl

    measure: rows {prompt}: every merged folder replies to them, and points.json says at what KL from the
    policy, with the texts: what `eval` draws beside a head's frontier.
    num_prompts: of the prompts, from the first. num_replies: to each prompt.
    reply_tokens: of a reply at most.
    label: of the curve; by default after the method.
    """

    measure: Path | None = None
    num_prompts: int = 200
    num_replies: int = 1
    reply_tokens: int = 200
    label: str = ""

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("num_prompts", "num_replies", "reply_tokens"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        if self.measure is not None and not self.merge:
            raise ValueError("measure needs merged folders: give --merge")
        if self.label and self.measure is None:
            raise ValueError("label names the measured curve: give --measure")


def main(prog: str, args: Sequence[str]) -> None:
    """Trains, merges and measures. Raises UserError, DataError or PolicyError with one line."""
    config = parse(TrainLoraConfig, f"{prog} --lora", [arg for arg in args if arg != "--lora"])
    if str(config.model) == BUNDLED:
        config = replace(config, model=MODEL_DIR)
    missing = [name for name in _EXTRA if importlib.util.find_spec(name) is None]
    if missing:
        raise UserError(f"--lora needs {' and '.join(missing)}: pip install trimtab[lora]")
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    logging.getLogger("trimtab").setLevel(logging.INFO)
    try:
        _run(config)
    except (OSError, SafetensorError) as error:
        raise UserError(f"{config.out} cannot be written: {error}") from error


def _run(config: TrainLoraConfig) -> None:
    from trimtab.guidance.training.lora.train import tune  # noqa: PLC0415 (an extra that may not be installed)

    tuned = tune(config)
    print(f"adapter: {tuned.adapter}")
    for scale, folder in tuned.merged.items():
        print(f"merged at {scale:g}: trimtab serve --model {folder}")
    if config.measure is not None:
        from trimtab.server.rollouts.tuned import measure_points  # noqa: PLC0415 (loads an engine)

        points = measure_points(config, config.measure, tuned.merged)
        path = config.out / POINTS_FILE
        write_text(path, json.dumps(points, ensure_ascii=False) + "\n")
        for point in points["points"]:
            print(f"{point['label']}: {point['kl']:.3g} nats per reply")
        print(f"written to {path}")
