"""On-policy training: an advantage learns from replies that the policy, tilted by it, writes meanwhile."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch.utils.data import IterableDataset
from transformers import TrainerCallback, TrainerState, TrainingArguments

from trimtab.guidance.data.items import PromptItem, RolloutItem, max_length
from trimtab.guidance.errors import DataError
from trimtab.guidance.features.source import FeatureSource
from trimtab.guidance.heads.forms import Head
from trimtab.guidance.losses.policy_gradient import PolicyFormula
from trimtab.guidance.training.config import TrainConfig
from trimtab.guidance.training.examples import Split
from trimtab.guidance.training.figures import score_figures
from trimtab.guidance.training.loop import train_part
from trimtab.guidance.training.methods import Method
from trimtab.guidance.training.objectives.on_policy import Experience, PolicyObjective
from trimtab.guidance.training.on_policy.collect import Collector, ReplyWriter, seed_of
from trimtab.guidance.training.on_policy.guard import KlGuard
from trimtab.guidance.training.plan import replies_per_step
from trimtab.guidance.training.processes import num_processes, process_index

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Outcome:
    """rollouts: the policy's own replies to the held-out prompts, rewarded. figures: how the head's
    compare."""

    rollouts: list[RolloutItem]
    figures: dict[str, float]


def train_on_policy(
    method: Method,
    head: Head,
    prompts: Split[PromptItem],
    features: FeatureSource,
    writer: ReplyWriter | None,
    config: TrainConfig,
) -> Outcome:
    """Trains head.advantage in place. Checkpoints lie between iterations, and an iteration's replies follow
    from the seed and the weights: a run that was killed and resumed ends with the same weights.

    features: computed when asked for and not kept.

    Raises:
        DataError: no writer; prompts that leave no room for a reply; replies without a reward; the head
            begins too far from the policy; as train_part does.
    """
    folder = config.run_folder / "advantage"
    objective = method.objective(head, config, features)
    assert isinstance(objective, PolicyObjective)
    if writer is None:
        raise DataError(f"advantage.loss={config.advantage.loss} samples replies: give train_head a writer")
    kept = Split(*(_fitting(side, features, config) for side in (prompts.train, prompts.held_out)))
    guard = KlGuard(folder, config.on_policy, config.advantage.tau)
    collector = Collector(objective, kept.train, writer, features, guard)
    iterations = Iterations(collector, num_iterations(config, len(kept.train)))
    length = steps_per_iteration(config)
    torch.manual_seed(config.seed)
    train_part(
        objective,
        partial(method.loss.bind(config.advantage), **_weights(config, objective.formula)),
        iterations,
        folder=folder,
        optimiser=config.advantage.optimiser,
        config=replace(config, log_every=config.log_every or length),
        device=features.policy.device,
        max_steps=iterations.num_iterations * length,
        save_every=-(-(config.save_every or 1) // length) * length,
        callbacks=(IterationsCallback(iterations, length),),
    )
    if iterations.is_ended:
        guard.restore(objective)
    return _judge(collector, kept.held_out)


def steps_per_iteration(config: TrainConfig) -> int:
    """Optimiser steps."""
    step = replies_per_step(config)
    return config.on_policy.passes * config.on_policy.num_samples // step


def num_iterations(config: TrainConfig, num_prompts: int) -> int:
    """By which each prompt is replied to advantage.optimiser.epochs times."""
    return max(1, round(config.advantage.optimiser.epochs * num_prompts / config.on_policy.num_prompts))


def _weights(config: TrainConfig, formula: PolicyFormula) -> dict[str, float]:
    """Options of the on-policy configuration that the loss reads."""
    return {name: getattr(config.on_policy, name) for name in formula.on_policy}


def _fitting(
    prompts: Sequence[PromptItem], features: FeatureSource, config: TrainConfig
) -> tuple[PromptItem, ...]:
    """Those that leave room for a whole reply and the token after it that a reward is read at."""
    limit = max_length(config, features.policy) - config.on_policy.max_tokens - 1
    fitting = tuple(prompt for prompt in prompts if len(prompt.prompt_ids) <= limit)
    told = f"{len(prompts) - len(fitting)} of {len(prompts)} prompts are longer than {limit} tokens"
    if not fitting or (len(fitting) < len(prompts) and config.on_bad_rows == "refuse"):
        raise DataError(
            f"{told}, and leave no room for on_policy.max_tokens={config.on_policy.max_tokens}: give fewer, "
            "or skip bad rows"
        )
    if len(fitting) < len(prompts):
        logger.warning("left out prompts: %s", told)
    return fitting


def _judge(collector: Collector, prompts: Sequence[PromptItem]) -> Outcome:
    """Held-out replies with the head and without. A head that has passed the guard in its last updates goes
    back to what it was before them."""
    steered, figures = collector.judge(prompts, 1.0)
    if collector.guard.is_passed(figures["kl_per_reply"]):
        logger.warning("the last updates passed on_policy.max_kl: the head is what it was before them")
        collector.guard.restore(collector.objective)
        steered, figures = collector.judge(prompts, 1.0)
    plain, _ = collector.judge(prompts, 0.0)
    return Outcome(plain, {**score_figures(steered, plain), "kl_per_reply": figures["kl_per_reply"]})


class Iterations(IterableDataset[Experience]):
    """The data of a trainer: replies are sampled when those of the iteration before have been learned from.

    num_samples experiences for each pass over an iteration's replies, each pass in an order of its own; of
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
