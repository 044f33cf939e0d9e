"""`trimtab train`: a head from preferences over a model's own replies."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import replace

from rich.console import Console

from trimtab.guidance.bundled import MODEL_DIR
from trimtab.guidance.train_config import TrainConfig
from trimtab.guidance.trainer import train_head
from trimtab.server.commands.errors import UserError
from trimtab.server.commands.flags import parse
from trimtab.server.commands.heads import head_table
from trimtab.server.commands.model import BUNDLED


def main(prog: str, args: Sequence[str]) -> None:
    """Trains, and shows the head. Raises UserError, DataError, PolicyError or HeadError with one line."""
    config = parse(TrainConfig, prog, args)
    if str(config.model) == BUNDLED:
        config = replace(config, model=MODEL_DIR)
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    logging.getLogger("trimtab").setLevel(logging.INFO)
    try:
        manifest = train_head(config)
    except OSError as error:
        raise UserError(f"{config.head_folder} or {config.run_folder} cannot be written: {error}") from error
    Console().print(head_table(manifest))
    print(f"serve it with: trimtab serve --model {config.model} --heads {config.head_folder}")
