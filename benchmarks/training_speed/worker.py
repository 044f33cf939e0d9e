"""One turn of one contender, in this process: python -m benchmarks.training_speed.worker NAME CONFIG
MODEL. The last line is the turn as JSON."""

from __future__ import annotations

import json
import sys
import tempfile
from dataclasses import asdict
from pathlib import Path

import torch

from benchmarks.training_speed.config import from_json
from benchmarks.training_speed.contenders import CONTENDERS


def main(name: str, config_json: str, model: str) -> None:
    config = from_json(config_json)
    if config.threads:
        torch.set_num_threads(config.threads)
    with tempfile.TemporaryDirectory() as scratch:
        turn = CONTENDERS[name](config, Path(model), Path(scratch))
    print(json.dumps(asdict(turn) | {"threads": torch.get_num_threads()}))


if __name__ == "__main__":
    main(*sys.argv[1:])
