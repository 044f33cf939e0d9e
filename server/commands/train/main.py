"""`trimtab train`: a head from preferences, rankings, thumbs, or scored replies of a model."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from rich.console import Console

from trimtab.guidance.bundled import MODEL_DIR
from trimtab.guidance.config_file import read_config
from trimtab.guidance.errors import ModelError, UsageError, UserError
from trimtab.guidance.heads.manifest import Manifest
from trimtab.guidance.policy import load_policy
from trimtab.guidance.training.config import TrainConfig
from trimtab.guidance.training.plan import make_plan, samples_replies
from trimtab.guidance.training.processes import end_processes, is_first, own_device
from trimtab.guidance.training.train_head import train_head
from trimtab.server.commands.heads.main import head_table
from trimtab.server.commands.model import BUNDLED
from trimtab.server.commands.train import lora as train_lora
from trimtab.server.flags import parse
from trimtab.server.rollouts.learner import EngineWriter


@dataclass(frozen=True, kw_only=True)
class TrainCommandConfig(TrainConfig):
    """Trains a head on a frozen policy, in minutes: the policy runs once over the data, and only the head
    learns. Give the data, and the parts that are to learn from it: advantage steers, value forecasts, reward
    judges. How good each is on prompts that were held out is written to the head's manifest and shown.

    DPO on pairs, with a reward and a value beside it:

      trimtab train --name kind --model M --preferences pairs.jsonl \\
        --advantage.loss dpo --advantage.tau 0.1 --head-folder heads/kind --run-folder runs/kind

    Monte Carlo on replies that `trimtab rollouts` sampled and scored:

      trimtab train --name witty --model M --rollouts rollouts.parquet --parts value advantage \\
        --advantage.loss monte_carlo --head-folder heads/witty --run-folder runs/witty

    RLOO on replies that are sampled and scored between the updates:

      trimtab train --name witty --model M --prompts prompts.jsonl --parts advantage \\
        --advantage.loss rloo --advantage.tau 0.5 --on-policy.score function:my_rewards:wit \\
        --head-folder heads/witty --run-folder runs/witty

    A stopped run goes on with --resume. Several processes share a run's batches: torchrun --nproc-per-node 2
    -m trimtab.server.cli train, and the same flags. `trimtab train --lora --help` tells of fine-tuning the
    policy itself.

    config: a YAML file with the same names, nested as the dots are; flags count more than what it says. Every
    run writes its own as train_config.yaml.
    """

    config: Path | None = None


def main(prog: str, args: Sequence[str]) -> None:
    """Trains, and shows the head. Raises UserError, DataError, PolicyError or HeadError with one line."""
    if "--lora" in args:
        train_lora.main(prog, args)
        return
    config = _parse(prog, args)
    if str(config.model) == BUNDLED:
        config = replace(config, model=MODEL_DIR)
    logging.basicConfig(level=logging.WARNING if is_first() else logging.ERROR, format="%(message)s")
    logging.getLogger("trimtab").setLevel(logging.INFO if is_first() else logging.ERROR)
    try:
        manifest = _train(config)
    except OSError as error:
        raise UserError(f"{config.head_folder} or {config.run_folder} cannot be written: {error}") from error
    finally:
        end_processes()
    if is_first():
        _show(config, manifest)


def _train(config: TrainConfig) -> Manifest:
    if not samples_replies(config):
        return train_head(config)
    make_plan(config)  # before anything is loaded
    policy = load_policy(config.model, device=own_device(config.device))
    try:
        writer = EngineWriter.load(config, policy)
    except ModelError as error:
        raise UserError(str(error)) from error
    return train_head(config, policy=policy, writer=writer)


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


def _show(config: TrainConfig, manifest: Manifest) -> None:
    Console().print(head_table(manifest))
    print(f"serve it with: trimtab serve --model {config.model} --heads {config.head_folder}")
