"""Heads from many replies: eight times the reference's, credited over a longer horizon, by three seeds."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from examples.gold.recipes import seeded
from examples.gold.task import (
    BY_REPLY,
    BY_TOKEN,
    JUDGE_PROMPTS,
    REFERENCE,
    REPLY_TOKENS,
    SEEDS,
    TRAIN_PROMPTS,
    TUNING_PROMPTS,
    Step,
    Task,
)

MANY = "mc-many"


def many_steps(task: Task) -> Iterator[Step]:
    """Replies, heads, and an evaluation beside the reference and a constant that is fitted to as many."""
    replies, out = task.at("many.parquet"), "evaluation-many"
    yield Step(
        "many",
        (
            *("rollouts", *task.common, "--prompts", task.at(TRAIN_PROMPTS), "--num-replies", "128"),
            *("--max-tokens", REPLY_TOKENS, "--max-num-seqs", "256", "--score", BY_TOKEN, "--out", replies),
        ),
        "many.parquet",
    )
    names = [seeded(MANY, seed) for seed in SEEDS]
    for seed, name in zip(SEEDS, names, strict=True):
        yield _head(replace(task, seed=task.seed + seed), name, replies)
    yield Step(
        out,
        (
            *("eval", *task.common, *task.heads([*names, REFERENCE]), "--group", f"{MANY}={','.join(names)}"),
            *("--prompts", task.at(JUDGE_PROMPTS), "--gold", BY_REPLY, "--max-tokens", REPLY_TOKENS),
            *("--num-replies", "8", "--max-num-seqs", "256", "--at-kl", "1", "2", "4"),
            *("--best-of", "1", "2", "4", "8", "16", "32", "64", "--static-bias", "fit"),
            *("--rollouts", replies, "--bias-discount", "0.8", "0.9", "0.98", "--bias-tokens", "1024", "all"),
            *("--bias-shrinkage", "20", "100", "--tuning-prompts", task.at(TUNING_PROMPTS)),
            *("--tuning-replies", "2", "--out", task.at(out)),
        ),
        f"{out}/report.json",
    )


def _head(task: Task, name: str, replies: str) -> Step:
    return Step(
        name,
        (
            *("train", *task.common, "--name", name, "--rollouts", replies, "--parts", "value", "advantage"),
            *("--held-out", "0.02", "--value.form", "gru", "--value.discount", "1"),
            *("--value.optimiser.epochs", "1", "--value.optimiser.batch-size", "128"),
            *("--advantage.loss", "monte_carlo", "--advantage.discount", "0.98"),
            *("--advantage.form", "lowrank", "--advantage.rank", "128"),
            *("--advantage.optimiser.epochs", "1.5", "--advantage.optimiser.batch-size", "128"),
            *("--advantage.optimiser.learning-rate", "1e-3"),
            *("--head-folder", task.at(f"heads/{name}"), "--run-folder", task.at(f"runs/{name}")),
        ),
        f"heads/{name}",
    )
