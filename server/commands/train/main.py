"""`trimtab train`: a head from preferences, rankings, thumbs, or scored replies of a model; with --lora the
policy itself."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path

from trimtab.guidance.config_file import read_config
from trimtab.guidance.errors import UsageError
from trimtab.guidance.training.config import TrainConfig
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
    file = _config_file(args)
    defaults = {} if file is None else read_config(TrainConfig, file)
    parsed = parse(TrainCommandConfig, prog, args, defaults)
    fields = (field.name for field in dataclasses.fields(TrainConfig))
    return TrainConfig(**{name: getattr(parsed, name) for name in fields})


def _config_file(args: Sequence[str]) -> Path | None:
    """What --config names. Its values are the defaults of the other flags, so it is read before them."""
    for arg, following in zip(args, [*args[1:], ""], strict=True):
        name, has_value, value = arg.partition("=")
        if name == "--config":
            value = value if has_value else following
            if not value or value.startswith("--"):
                raise UsageError("--config needs a YAML file")
            return Path(value)
    return None
