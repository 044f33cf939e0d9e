"""`trimtab train` at work: a head is trained, and shown."""

from __future__ import annotations

import logging

from rich.console import Console

from trimtab.guidance.errors import ModelError, UserError
from trimtab.guidance.heads.manifest import Manifest
from trimtab.guidance.policy import load_policy
from trimtab.guidance.training.config import TrainConfig
from trimtab.guidance.training.plan import make_plan, samples_replies
from trimtab.guidance.training.processes import end_processes, is_first, own_device
from trimtab.guidance.training.train_head import train_head
from trimtab.server.commands.heads.show import head_table
from trimtab.server.commands.log import show_log
from trimtab.server.rollouts.learner import EngineWriter


def run(config: TrainConfig) -> None:
    """Raises UserError, DataError, PolicyError or HeadError with one line."""
    show_log("trimtab", logging.INFO if is_first() else logging.ERROR)
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
    policy = load_policy(config.model, device=own_device(config.device), dtype=config.dtype)
    try:
        writer = EngineWriter.load(config, policy)
    except ModelError as error:
        raise UserError(str(error)) from error
    return train_head(config, policy=policy, writer=writer)


def _show(config: TrainConfig, manifest: Manifest) -> None:
    Console().print(head_table(manifest))
    print(f"serve it with: trimtab serve --model {config.model} --heads {config.head_folder}")
