"""Heads that learn from what heads wrote: iterated values in two rounds, and a long run on policy."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from examples.gold.recipes import seeded
from examples.gold.task import (
    BY_TOKEN,
    REFERENCE,
    REPLY_TOKENS,
    SEEDS,
    TRAIN_PROMPTS,
    Command,
    Step,
    Task,
)

ROUNDS = ("round1", "round2")
"""A round's folder of rollouts lies in that of the next, which therefore learns from the union: as long as it
has no files of its own beside that, for then a folder is read without those below."""
STRENGTHS = ("0.5", "1", "2")
REMEMBERING, LONG = "mc-gru", "ppo-long"

_LEARNING: Command = (*("--advantage.form", "lowrank", "--advantage.rank", "128"),)


def iterated_steps(task: Task) -> Iterator[Step]:
    yield from _rounds(task)
    for seed in SEEDS:
        learner, start = replace(task, seed=task.seed + seed), seeded(REMEMBERING, seed)
        yield _remembering(learner, start)
        yield _long(learner, seeded(LONG, seed), start)


def _folder(task: Task, number: int) -> str:
    """runs/rounds/round1, in runs/rounds of the second."""
    return task.at("/".join(("rounds", *reversed(ROUNDS[number:-1]))))


def _rounds(task: Task) -> Iterator[Step]:
    """Iterated values (arXiv 2503.02368): the head of the round before writes replies at several strengths,
    and the next one regresses on what all replies so far have earned."""
    plain = f"{_folder(task, 0)}/plain.parquet"
    yield Step(
        "rounds/plain",
        (
            *("rollouts", *task.common, "--rescore", task.at("replies.parquet")),
            *("--score", BY_TOKEN, "--out", plain),
        ),
        plain.removeprefix(f"{task.folder}/"),
    )
    writer = REFERENCE
    for number, name in enumerate(ROUNDS):
        for strength in STRENGTHS:
            out = f"{_folder(task, number)}{'/new' * (number > 0)}/{name}-{strength}.parquet"
            sampled = (
                *("rollouts", *task.common, *task.heads([writer]), "--steer", f"{writer}=1"),
                *("--strength", strength, "--prompts", task.at(TRAIN_PROMPTS), "--num-replies", "8"),
                *("--max-tokens", REPLY_TOKENS, "--max-num-seqs", "256", "--score", BY_TOKEN, "--out", out),
            )
            yield Step(f"rounds/{name}-{strength}", sampled, out.removeprefix(f"{task.folder}/"))
        for seed in SEEDS if name == ROUNDS[-1] else SEEDS[:1]:
            learner = replace(task, seed=task.seed + seed)
            yield _head(learner, seeded(name, seed), _regression(_folder(task, number)))
        writer = name


def _regression(folder: str) -> Command:
    """As the reference, but from the rollouts in the folder."""
    return (
        *("--rollouts", folder, "--steered", "learn", "--parts", "value", "advantage"),
        *("--held-out", "0.05"),
        *("--advantage.loss", "monte_carlo", "--advantage.discount", "0.8", "--value.discount", "0.8"),
        *("--advantage.optimiser.epochs", "4", "--advantage.optimiser.learning-rate", "1e-3"),
    )


def _remembering(task: Task, name: str) -> Step:
    """As the reference, with a value that remembers the reply and forecasts all that is left of it."""
    return _head(
        task,
        name,
        (
            *("--rollouts", task.at("replies.parquet"), "--features", task.at("features/replies")),
            *("--parts", "value", "advantage", "--advantage.loss", "monte_carlo"),
            *("--advantage.discount", "0.8", "--value.discount", "1", "--value.form", "gru"),
            *("--value.optimiser.epochs", "2", "--advantage.optimiser.epochs", "4"),
            *("--advantage.optimiser.learning-rate", "1e-3"),
        ),
    )


def _long(task: Task, name: str, start: str) -> Step:
    """From there, eight iterations of 1024 replies at the price of two nats, where a nat more buys about 1.25
    of gold; rewards count undiscounted, and the value, not a discount, spares noise (λ = 0.9)."""
    return _head(
        task,
        name,
        (
            *("--start-from", task.at(f"heads/{start}"), "--on-policy.start-strength", "0.7"),
            *("--prompts", task.at(TRAIN_PROMPTS), "--parts", "advantage", "--advantage.loss", "ppo"),
            *("--value.form", "gru", "--on-policy.score", BY_TOKEN, "--on-policy.max-tokens", REPLY_TOKENS),
            *("--on-policy.max-num-seqs", "256", "--on-policy.num-prompts", "256", "--on-policy.lam", "0.9"),
            *("--advantage.tau", "1.25", "--advantage.optimiser.batch-size", "128"),
            *("--advantage.optimiser.epochs", "3.6", "--advantage.optimiser.learning-rate", "2e-3"),
            *("--held-out", "0.05"),
        ),
    )


def _head(task: Task, name: str, learned: Command) -> Step:
    return Step(
        name,
        (
            *("train", *task.common, "--name", name, *learned, *_LEARNING),
            *("--head-folder", task.at(f"heads/{name}"), "--run-folder", task.at(f"runs/{name}")),
        ),
        f"heads/{name}",
    )
