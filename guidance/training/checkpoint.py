"""Checkpoints of a part's training in safetensors and JSON, so that resuming unpickles nothing."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import TrainerCallback, TrainerState, TrainingArguments

from trimtab.guidance.errors import DataError
from trimtab.guidance.files import whole_file
from trimtab.guidance.training.log import TrainingLog

OPTIMISER_FILE = "optimiser.safetensors"
WEIGHTS_FILE = "model.safetensors"
STATE_FILE = "trainer_state.json"
_SCALER = ("scale", "_growth_tracker")


class OptimiserCheckpoint(TrainerCallback):  # type: ignore[misc]  # transformers has no type stubs
    """Puts the optimiser's state and learning rates into each checkpoint, the last of its files: with it the
    checkpoint is complete, and older ones are removed.

    resume_from: the checkpoint folder that training goes on from; None for a fresh start.
    scaler: of the gradients, where precision is fp16.
    """

    def __init__(self, resume_from: Path | None, scaler: Any = None) -> None:
        self.resume_from = resume_from
        self.scaler = scaler

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
        if self.scaler is not None:
            scale = dict(zip(_SCALER, saved.pop("scaler").tolist(), strict=True))
            self.scaler.load_state_dict(self.scaler.state_dict() | scale)
        loaded = optimizer.state_dict() | {"state": _unflatten(saved)}
        optimizer.load_state_dict(loaded)
        for group, rate in zip(optimizer.param_groups, rates, strict=True):
            group["lr"] = rate
        lr_scheduler.load_state_dict(lr_scheduler.state_dict() | {"last_epoch": state.global_step})

    def on_save(
        self, args: TrainingArguments, state: TrainerState, control: Any, *, optimizer: Any, **_: Any
    ) -> None:
        if not args.should_save:
            return
        tensors = {
            f"{index}.{name}": tensor.detach().cpu().contiguous()
            for index, entries in optimizer.state_dict()["state"].items()
            for name, tensor in entries.items()
        }
        rates = [group["lr"] for group in optimizer.param_groups]
        tensors["learning_rates"] = torch.tensor(rates, dtype=torch.float64)
        if self.scaler is not None:
            scale = self.scaler.state_dict()
            tensors["scaler"] = torch.tensor([scale[name] for name in _SCALER], dtype=torch.float64)
        path = Path(args.output_dir) / f"checkpoint-{state.global_step}" / OPTIMISER_FILE
        with writing(path.parent):
            _write(tensors, path)
            remove_checkpoints(Path(args.output_dir), keep=path.parent)


@contextmanager
def writing(folder: Path) -> Iterator[None]:
    """Within, files are written to a checkpoint. Raises DataError where they cannot be."""
    try:
        yield
    except (OSError, SafetensorError) as error:
        raise DataError(
            f"{folder} cannot be written ({error}): make room, and resume from the checkpoint before"
        ) from error


def save_weights(model: nn.Module, folder: Path) -> None:
    """Writes the parameters that are trained.

    Raises:
        DataError: they hold NaN or inf; or they cannot be written.
    """
    tensors = {name: parameter.detach().cpu().contiguous() for name, parameter in _trained(model).items()}
    for name, tensor in tensors.items():
        if not tensor.isfinite().all():
            raise DataError(f"{name} holds NaN or inf at {folder.name}: give a lower learning rate")
    with writing(folder):
        _write(tensors, folder / WEIGHTS_FILE)


def _write(tensors: dict[str, Tensor], path: Path) -> None:
    with whole_file(path) as new:
        save_file(tensors, new)


def load_weights(model: nn.Module, checkpoint: Path) -> None:
    """Reads what save_weights wrote."""
    trained = _trained(model)
    saved = load_file(checkpoint / WEIGHTS_FILE)
    assert saved.keys() == trained.keys(), "the configuration of a resumed run is the same"
    with torch.no_grad():
        for name, parameter in trained.items():
            parameter.copy_(saved[name])


def last_checkpoint(folder: Path) -> Path | None:
    """The newest complete checkpoint of a run, or None."""
    complete = [path.parent for path in folder.glob(f"checkpoint-*/{OPTIMISER_FILE}")]
    return max(complete, key=lambda path: int(path.name.rpartition("-")[2]), default=None)


def is_finished(checkpoint: Path, patience: int = 0) -> bool:
    """Whether training ended with this checkpoint: at its last step, or for want of patience."""
    state = json.loads((checkpoint / STATE_FILE).read_text(encoding="utf-8"))
    is_last = bool(state["global_step"] >= state["max_steps"])
    return is_last or TrainingLog.of(state["log_history"]).has_stopped(patience)


def read_log(checkpoint: Path) -> TrainingLog:
    """What was logged until a checkpoint."""
    state = json.loads((checkpoint / STATE_FILE).read_text(encoding="utf-8"))
    return TrainingLog.of(state["log_history"])


def remove_checkpoints(folder: Path, keep: Path | None = None) -> None:
    for path in folder.glob("checkpoint-*"):
        if path != keep:
            shutil.rmtree(path)


def _trained(model: nn.Module) -> dict[str, nn.Parameter]:
    return {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}


def _unflatten(tensors: dict[str, Tensor]) -> dict[int, dict[str, Tensor]]:
    state: dict[int, dict[str, Tensor]] = {}
    for key, tensor in tensors.items():
        index, _, name = key.partition(".")
        state.setdefault(int(index), {})[name] = tensor
    return state
