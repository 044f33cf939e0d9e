"""Trains one part of a head on transformers' Trainer: progress bar, schedule, checkpoints and resuming."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset
from transformers import PrinterCallback, Trainer, TrainingArguments

from trimtab.guidance.checkpoint import OptimiserCheckpoint, last_checkpoint, remove_checkpoints
from trimtab.guidance.losses import Loss
from trimtab.guidance.train_config import OptimiserConfig, TrainConfig


class PartTrainer(Trainer):  # type: ignore[misc]  # transformers has no type stubs
    """The model is an objective: its forward gives what the loss takes, and metrics of its own."""

    def __init__(self, *, loss: Loss, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.loss = loss
        self._metrics: dict[str, list[float]] = defaultdict(list)

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Tensor],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Tensor:
        scores, metrics = model(**inputs)
        result = self.loss(**scores)
        for name, metric in (result.metrics | metrics).items():
            self._metrics[name].append(metric.item())
        return result.per_example.mean()

    def log(self, logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
        means = {name: sum(numbers) / len(numbers) for name, numbers in self._metrics.items()}
        self._metrics.clear()
        super().log(logs | means, *args, **kwargs)


class _Items(Dataset[Any]):
    def __init__(self, items: Sequence[Any]) -> None:
        self.items = items

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, index: int) -> Any:
        return self.items[index]


def train_part(
    objective: nn.Module,
    loss: Loss,
    items: Sequence[Any],
    collate: Callable[[Sequence[Any]], dict[str, Tensor]],
    *,
    folder: Path,
    optimiser: OptimiserConfig,
    config: TrainConfig,
    device: torch.device,
) -> None:
    """Trains the parameters of `objective` in place. Checkpoints, one an epoch, are kept in `folder`; with
    config.resume the last of them is where training goes on, and a finished run is only read."""
    checkpoint = last_checkpoint(folder) if config.resume else None
    if checkpoint is None:
        remove_checkpoints(folder)
    trainer = PartTrainer(
        loss=loss,
        model=objective,
        args=_arguments(folder, optimiser, config, device),
        train_dataset=_Items(items),
        data_collator=collate,
        callbacks=[OptimiserCheckpoint(checkpoint)],
    )
    if not config.show_progress:
        trainer.remove_callback(PrinterCallback)
    trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)


def _arguments(
    folder: Path, optimiser: OptimiserConfig, config: TrainConfig, device: torch.device
) -> TrainingArguments:
    arguments = TrainingArguments(
        output_dir=str(folder),
        num_train_epochs=optimiser.epochs,
        per_device_train_batch_size=optimiser.batch_size,
        learning_rate=optimiser.learning_rate,
        weight_decay=optimiser.weight_decay,
        warmup_steps=optimiser.warmup,
        lr_scheduler_type="cosine",
        seed=config.seed,
        use_cpu=device.type == "cpu",
        dataloader_pin_memory=device.type != "cpu",
        remove_unused_columns=False,
        label_names=[],
        save_strategy="epoch",
        save_only_model=True,  # the optimiser is kept by OptimiserCheckpoint
        logging_strategy="epoch",
        report_to="none",
        disable_tqdm=not config.show_progress,
    )
    arguments._n_gpu = min(1, arguments.n_gpu)  # DataParallel would cut through the replies of a batch
    return arguments
