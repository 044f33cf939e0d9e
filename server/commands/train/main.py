"""`trimtab train`: a head from preferences, rankings, thumbs, or scored replies of a model; with --lora the
policy itself."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from trimtab.guidance.config_file import read_config
from trimtab.guidance.training.config import TrainConfig
from trimtab.server.commands.settings import config_file
from trimtab.server.commands.train.config import TrainCommandConfig
from trimtab.server.flags import parse


def main(prog: str, args: Sequence[str]) -> None:
    """Trains, and shows the head. Raises UserError, DataError, PolicyError or HeadError with one line."""
    if "--lora" in args:
        from trimtab.server.commands.train import lora  # noqa: PLC0415 (heavy)

        lora.main(prog, args)
        return
    config = _parse(prog, args)
    from trimtab.server.commands.train.run import run  # noqa: PLC0415 (heavy; bad flags are told before)

    run(config)


def _parse(prog: str, args: Sequence[str]) -> TrainConfig:
    file = config_file(args)
    defaults = {} if file is None else read_config(TrainConfig, file)
    parsed = parse(TrainCommandConfig, prog, args, defaults)
    fields = (field.name for field in dataclasses.fields(TrainConfig))
    return TrainConfig(**{name: getattr(parsed, name) for name in fields})
