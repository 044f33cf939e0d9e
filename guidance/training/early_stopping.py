"""Early stopping: measures the held-out loss after each epoch, keeps the best weights, and ends training."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor, nn
from transformers import TrainerCallback, TrainerState, TrainingArguments

from trimtab.guidance.training.checkpoint import load_weights, save_weights
from trimtab.guidance.training.figures import HeldOutLoss, knowing_nothing
from trimtab.guidance.training.log import HELD_OUT, NOTHING, TrainingLog
from trimtab.guidance.training.processes import is_first, num_processes, process_index


class EarlyStopping(TrainerCallback):  # type: ignore[misc]  # transformers has no type stubs
    """Ends training after `patience` epochs without a lower held-out loss. What was measured stands in the
    Trainer's log_history and with it in checkpoints; the best weights in folder/best-STEP.

    items: that are trained on. log: takes figures into log_history. total: sums over processes.
    """

    def __init__(
        self,
        held_out: HeldOutLoss,
        items: Sequence[Any],
        *,
        folder: Path,
        patience: int,
        log: Callable[[dict[str, float]], None],
        total: Callable[[Tensor], Tensor],
    ) -> None:
        self.held_out, self.items, self.folder, self.patience = held_out, items, folder, patience
        self.log, self.total = log, total

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: Any, **_: Any) -> None:
        if not any(NOTHING in row for row in state.log_history):
            with knowing_nothing(self.held_out.objective, self.items):
                self.log({NOTHING: self._measure()})

    def on_epoch_end(
        self, args: TrainingArguments, state: TrainerState, control: Any, *, model: nn.Module, **_: Any
    ) -> None:
        should_log = control.should_log  # the loss of training, after which ours must not be the last word
        self.log({HELD_OUT: self._measure()})
        control.should_log = should_log
        seen = TrainingLog.of(state.log_history)
        if seen.best_step == state.global_step and is_first():
            save_weights(model, best_folder(self.folder, state.global_step))
        if seen.has_stopped(self.patience):
            control.should_training_stop = control.should_save = True

    def on_save(self, args: TrainingArguments, state: TrainerState, control: Any, **_: Any) -> None:
        """The checkpoint is complete: nothing goes on from before it."""
        best = TrainingLog.of(state.log_history).best_step
        if best is not None and is_first():
            remove_best(self.folder, keep=best_folder(self.folder, best))

    def _measure(self) -> float:
        share = self.held_out.per_item(process_index(), num_processes())
        return self.total(share).mean().item()


def best_folder(folder: Path, step: int) -> Path:
    return folder / f"best-{step}"


def remove_best(folder: Path, keep: Path | None = None) -> None:
    for path in folder.glob("best-*"):
        if path != keep:
            shutil.rmtree(path)


def load_best(model: nn.Module, folder: Path, seen: TrainingLog) -> None:
    """Puts back the weights of the epoch with the lowest held-out loss, where that was measured."""
    if seen.best_step is not None:
        load_weights(model, best_folder(folder, seen.best_step))
