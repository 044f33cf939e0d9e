"""`trimtab train --lora`: the policy itself fine-tuned, the baseline that heads must face."""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Sequence

from safetensors import SafetensorError

from trimtab.guidance.errors import UserError
from trimtab.guidance.files import write_text
from trimtab.server.commands.log import show_log
from trimtab.server.flags import parse
from trimtab.server.rollouts.tuned import TrainLoraConfig

POINTS_FILE = "points.json"
_EXTRA = ("trl", "peft")


def main(prog: str, args: Sequence[str]) -> None:
    """Trains, merges and measures. Raises UserError, DataError or PolicyError with one line."""
    config = parse(TrainLoraConfig, f"{prog} --lora", [arg for arg in args if arg != "--lora"])
    missing = [name for name in _EXTRA if importlib.util.find_spec(name) is None]
    if missing:
        raise UserError(f"--lora needs {' and '.join(missing)}: pip install trimtab[lora]")
    show_log("trimtab")
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
