"""Checkpoints of the optimiser in safetensors, so that resuming unpickles nothing."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import TrainerCallback, TrainerState, TrainingArguments

OPTIMISER_FILE = "optimiser.safetensors"


class OptimiserCheckpoint(TrainerCallback):  # type: ignore[misc]  # transformers has no type stubs
    """Puts the optimiser's state and learning rates into each checkpoint, and removes older checkpoints.

    resume_from: the checkpoint folder that training goes on from; None for a fresh start.
    """

    def __init__(self, resume_from: Path | None) -> None:
        self.resume_from = resume_from

    def on_train_begin(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: Any,
        *,
        optimizer: Any,
        lr_scheduler: Any,
        **_: Any,
    ) -> None:
        if self.resume_from is None:
            return
        saved = load_file(self.resume_from / OPTIMISER_FILE)
        rates = saved.pop("learning_rates").tolist()
        loaded = optimizer.state_dict() | {"state": _unflatten(saved)}
        optimizer.load_state_dict(loaded)
        for group, rate in zip(optimizer.param_groups, rates, strict=True):
            group["lr"] = rate
        lr_scheduler.load_state_dict(lr_scheduler.state_dict() | {"last_epoch": state.global_step})

    def on_save(
        self, args: TrainingArguments, state: TrainerState, control: Any, *, optimizer: Any, **_: Any
    ) -> None:
        tensors = {
            f"{index}.{name}": tensor.detach().cpu().contiguous()
            for index, entries in optimizer.state_dict()["state"].items()
            for name, tensor in entries.items()
        }
        rates = [group["lr"] for group in optimizer.param_groups]
        tensors["learning_rates"] = torch.tensor(rates, dtype=torch.float64)
        path = Path(args.output_dir) / f"checkpoint-{state.global_step}" / OPTIMISER_FILE
        save_file(tensors, path.with_suffix(".part"))
        os.replace(path.with_suffix(".part"), path)
        remove_checkpoints(Path(args.output_dir), keep=path.parent)


def last_checkpoint(folder: Path) -> Path | None:
    """The newest complete checkpoint of a run, or None."""
    complete = [path.parent for path in folder.glob(f"checkpoint-*/{OPTIMISER_FILE}")]
    return max(complete, key=lambda path: int(path.name.rpartition("-")[2]), default=None)


def remove_checkpoints(folder: Path, keep: Path | None = None) -> None:
    for path in folder.glob("checkpoint-*"):
        if path != keep:
            shutil.rmtree(path)


def _unflatten(tensors: dict[str, Tensor]) -> dict[int, dict[str, Tensor]]:
    state: dict[int, dict[str, Tensor]] = {}
    for key, tensor in tensors.items():
        index, _, name = key.partition(".")
        state.setdefault(int(index), {})[name] = tensor
    return state
