"""Training loop of one part of a head, on transformers' Trainer: schedule, precision, accumulation,
checkpoints, resuming, several processes."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, IterableDataset
from transformers import PrinterCallback, Trainer, TrainerCallback, TrainingArguments
from transformers.integrations import is_tensorboard_available

from trimtab.guidance.errors import DataError
from trimtab.guidance.losses import Loss
from trimtab.guidance.training.checkpoint import (
    OptimiserCheckpoint,
    is_finished,
    last_checkpoint,
    load_weights,
    read_log,
    remove_checkpoints,
    save_weights,
    writing,
)
from trimtab.guidance.training.config import OptimiserConfig, TrainConfig
from trimtab.guidance.training.early_stopping import EarlyStopping, load_best, remove_best
from trimtab.guidance.training.figures import HeldOutLoss
from trimtab.guidance.training.log import LossBar, TrainingLog
from trimtab.guidance.training.objectives.base import Objective
from trimtab.guidance.training.processes import NUM_ITEMS, is_first, make_loader, num_processes


class Model(nn.Module):
    """An objective as a Trainer takes it: without the attribute `config`, which a Trainer would write to."""

    def __init__(self, objective: Objective) -> None:
        super().__init__()
        self.objective = objective

    def forward(self, **batch: Tensor) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        scores, metrics = self.objective(**batch)
        return scores, metrics


class PartTrainer(Trainer):  # type: ignore[misc]  # transformers has no type stubs
    """The model's forward gives what the loss takes, and metrics of its own.

    The loss of a step is the mean over its items, however they are cut into batches and shared among
    processes. Metrics are those of this process's items.
    """

    loss_is_scaled_for_ga = True

    def __init__(self, *, loss: Loss, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.loss = loss
        self._metrics: dict[str, list[tuple[Tensor, int]]] = defaultdict(list)

    def get_train_dataloader(self) -> DataLoader[Any]:
        return make_loader(
            self.train_dataset,
            self.model.objective.collate,
            batch_size=self.args.per_device_train_batch_size,
            seed=self.args.seed,
            process=self.args.process_index,
            num_processes=self.args.world_size,
        )

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Tensor],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Tensor:
        count = int(inputs.pop(NUM_ITEMS))
        scores, metrics = model(**inputs)
        result = self.loss(**scores)
        loss = result.per_example.mean()
        self._refuse_non_finite(loss)
        if count:
            for name, metric in (result.metrics | metrics).items():
                self._metrics[name].append((metric.detach(), count))
        # Gradients are averaged over processes, and summed over the batches of a step.
        return loss * (count * self.args.world_size / num_items_in_batch)

    def log_held_out(self, figures: dict[str, float]) -> None:
        """Apart from the figures of training steps, which wait for theirs."""
        super().log(figures)

    def log(self, logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
        means = {name: _weighted_mean(pieces) for name, pieces in self._metrics.items()}
        if means:  # steps were taken since
            means |= {name: figure.item() for name, figure in self.model.objective.figures().items()}
        self._metrics.clear()
        super().log(logs | means, *args, **kwargs)

    def _get_num_items_in_batch(self, batch_samples: list[dict[str, Tensor]], device: torch.device) -> Tensor:
        """The items of a step, of all its batches in all processes."""
        own = sum((batch[NUM_ITEMS] for batch in batch_samples), start=torch.zeros((), dtype=torch.long))
        return self.accelerator.reduce(own.to(device), "sum")

    def _refuse_non_finite(self, loss: Tensor) -> None:
        if not loss.isfinite():
            part, step = Path(self.args.output_dir).name, self.state.global_step + 1
            raise DataError(
                f"{part}: the loss is {loss.item()} at step {step}: give a lower learning rate, or look for "
                f"extreme rewards; checkpoints before it are kept in {self.args.output_dir}"
            )

    def _save(self, output_dir: str | None = None, state_dict: dict[str, Tensor] | None = None) -> None:
        if self.args.should_save:
            save_weights(self.model, Path(output_dir or self.args.output_dir))

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        with writing(Path(self.args.output_dir)):
            super()._save_checkpoint(model, trial)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: nn.Module | None = None) -> None:
        load_weights(model or self.model, Path(resume_from_checkpoint))


def train_part(
    objective: Objective,
    loss: Loss,
    data: Sequence[Any] | IterableDataset[Any],
    *,
    folder: Path,
    optimiser: OptimiserConfig,
    config: TrainConfig,
    device: torch.device,
    max_steps: int | None = None,
    save_every: int | None = None,
    callbacks: Sequence[TrainerCallback] = (),
    held_out: Sequence[Any] = (),
) -> TrainingLog:
    """Trains the parameters of `objective` in place. Checkpoints are kept in `folder`; with config.resume the
    last of them is where training goes on, and a finished run is only read.

    data: items for objective.collate. An IterableDataset (with max_steps) is read a batch at a time when a
    step needs it, so that what it gives may depend on the steps before; resumed, it is read from where it
    then begins. In several processes each reads its own.
    save_every: steps between two checkpoints; by default config.save_every.
    held_out: items whose loss is measured after each epoch. With optimiser.patience it ends training, and the
    weights of the epoch where it was lowest are what is left.

    Raises:
        DataError: the loss is NaN or infinite; a checkpoint cannot be written; what was asked for is not
            installed or not to be had on this device.
    """
    model = Model(objective)
    checkpoint = last_checkpoint(folder) if config.resume else None
    if checkpoint is not None and is_finished(checkpoint, optimiser.patience):
        seen = read_log(checkpoint)
        load_weights(model, checkpoint)
        load_best(model, folder, seen)
        return seen
    if checkpoint is None and is_first():
        remove_checkpoints(folder)
        remove_best(folder)
    if not isinstance(data, IterableDataset):
        objective.prepare(data)
    arguments = _arguments(folder, optimiser, config, device)
    arguments.max_steps = -1 if max_steps is None else max_steps
    arguments.ignore_data_skip = isinstance(data, IterableDataset)
    steps = save_every or config.save_every
    if steps is not None:
        arguments.save_strategy, arguments.save_steps = "steps", steps
    trainer = PartTrainer(loss=loss, model=model, args=arguments, train_dataset=data)
    if held_out and optimiser.patience:
        judge = HeldOutLoss(objective, loss, held_out, optimiser.batch_size)
        callbacks = (*callbacks, _stopping(trainer, judge, data, folder, optimiser.patience))
    _train(trainer, checkpoint, config, callbacks)
    trainer.accelerator.wait_for_everyone()
    seen = TrainingLog.of(trainer.state.log_history)
    load_best(model, folder, seen)
    return seen


def _stopping(
    trainer: PartTrainer, judge: HeldOutLoss, items: Any, folder: Path, patience: int
) -> EarlyStopping:
    device = trainer.accelerator.device

    def total(share: Tensor) -> Tensor:
        return trainer.accelerator.reduce(share.to(device), "sum").cpu()

    return EarlyStopping(
        judge, items, folder=folder, patience=patience, log=trainer.log_held_out, total=total
    )


def _train(
    trainer: PartTrainer, checkpoint: Path | None, config: TrainConfig, callbacks: Sequence[TrainerCallback]
) -> None:
    for callback in (OptimiserCheckpoint(checkpoint, trainer.accelerator.scaler), *callbacks):
        trainer.add_callback(callback)
    trainer.remove_callback(PrinterCallback)
    if config.show_progress:
        trainer.add_callback(LossBar(Path(trainer.args.output_dir).name))
    trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)


def _arguments(
    folder: Path, optimiser: OptimiserConfig, config: TrainConfig, device: torch.device
) -> TrainingArguments:
    precision = _precision(config, device)
    arguments = TrainingArguments(
        output_dir=str(folder),
        num_train_epochs=optimiser.epochs,
        per_device_train_batch_size=optimiser.batch_size,
        gradient_accumulation_steps=config.gradient_accumulation,
        learning_rate=optimiser.learning_rate,
        weight_decay=optimiser.weight_decay,
        warmup_steps=optimiser.warmup,
        max_grad_norm=config.max_grad_norm,
        lr_scheduler_type="cosine",
        seed=config.seed,
        bf16=precision == "bf16",
        fp16=precision == "fp16",
        use_cpu=device.type == "cpu",
        ddp_backend="gloo" if device.type == "cpu" and num_processes() > 1 else None,
        dataloader_pin_memory=device.type != "cpu",
        remove_unused_columns=False,
        label_names=[],
        save_strategy="epoch",
        save_only_model=True,  # the optimiser is kept by OptimiserCheckpoint
        logging_strategy="epoch" if config.log_every is None else "steps",
        logging_steps=config.log_every or 500,
        logging_nan_inf_filter=False,
        report_to=_reporter(config),
        disable_tqdm=True,  # LossBar shows the progress
    )
    arguments._n_gpu = min(1, arguments.n_gpu)  # DataParallel would cut through the replies of a batch
    return arguments


def _precision(config: TrainConfig, device: torch.device) -> str:
    if config.precision == "fp16" and device.type == "cpu":
        raise DataError("precision=fp16 needs a GPU: give bf16 or no")
    return "no" if config.precision == "auto" else config.precision


def _reporter(config: TrainConfig) -> str:
    if config.report_to == "tensorboard" and not is_tensorboard_available():
        raise DataError("report_to=tensorboard needs tensorboard: pip install tensorboard")
    return config.report_to


def _weighted_mean(pieces: Sequence[tuple[Tensor, int]]) -> float:
    total = sum(count for _, count in pieces)
    return sum(metric.item() * count for metric, count in pieces) / total
