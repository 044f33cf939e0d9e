"""Iterations as the data of a trainer: replies are sampled when those before have been learned from."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch.utils.data import IterableDataset
from transformers import TrainerCallback, TrainerState, TrainingArguments

from trimtab.guidance.training.objectives.on_policy import Experience
from trimtab.guidance.training.on_policy.collect import Collector, seed_of
from trimtab.guidance.training.processes import num_processes, process_index


class Iterations(IterableDataset[Experience]):
    """num_samples experiences for each pass over an iteration's replies, each pass in an order of its own; of
    several processes each gets its batches of them."""

    def __init__(self, collector: Collector, num_iterations: int) -> None:
        self.collector, self.num_iterations = collector, num_iterations
        self.start = 0
        self.is_ended = False
        """Whether the guard ended it."""

    def __iter__(self) -> Iterator[Experience]:
        config = self.collector.config
        for iteration in range(self.start, self.num_iterations):
            found = None if self.is_ended else self.collector.collect(iteration)
            if found is None:
                self.is_ended = True
                return
            for lap in range(config.on_policy.passes):
                generator = torch.Generator().manual_seed(seed_of(config.seed, iteration, lap))
                places = torch.arange(config.on_policy.num_samples) % len(found)
                order = torch.randperm(len(places), generator=generator).tolist()
                # Shared as the batches of rows are: each run of a batch for every process, one after another.
                size = config.advantage.optimiser.batch_size
                for start in range(process_index() * size, len(order), num_processes() * size):
                    for place in order[start : start + size]:
                        yield found[places[place]]


class IterationsCallback(TrainerCallback):  # type: ignore[misc]  # transformers has no type stubs
    """Begins where a checkpoint was written, and ends a run that the guard ended."""

    def __init__(self, iterations: Iterations, steps_per_iteration: int) -> None:
        self.iterations, self.steps_per_iteration = iterations, steps_per_iteration

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: Any, **_: Any) -> None:
        assert state.global_step % self.steps_per_iteration == 0, "checkpoints lie between iterations"
        self.iterations.start = state.global_step // self.steps_per_iteration
        self.iterations.collector.guard.begin(self.iterations.start)

    def on_epoch_end(self, args: TrainingArguments, state: TrainerState, control: Any, **_: Any) -> None:
        control.should_training_stop |= self.iterations.is_ended
