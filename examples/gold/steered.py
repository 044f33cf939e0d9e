"""Rules of the gold task: heads whose value forecasts the whole reply, and an evaluation of every rule."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from examples.gold.iterated import REMEMBERING
from examples.gold.recipes import seeded
from examples.gold.task import (
    BY_REPLY,
    JUDGE_PROMPTS,
    REPLY_TOKENS,
    SEEDS,
    Command,
    Step,
    Task,
)

HEAD = "whole"
"""REMEMBERING's advantage, with a value of what the whole reply will earn. By one of what is left to earn, no
reply could be ranked at its end: then nothing is left."""
BEST_OF = ("1", "2", "4", "8", "16")
RULES = (
    "tilt,strength=0.5,best_of=1/2/4/8",
    "tilt,strength=0.8,best_of=1/2/4/8",
    "tilt,strength=1.2,best_of=1/2/4/8",
    "lookahead,k=10,strength=1/2/4",
    "blockwise,candidates=8,block=16,strength=1",
    "blockwise,candidates=2/4/8,block=32,strength=1",
    "blockwise,candidates=8,block=32,proposal=tilt,strength=0.5/0.8/1.2",
    "smc,particles=8,block=16,strength=0.5/1/2/4",
    "smc,particles=8,block=16,proposal=tilt,strength=0.5/0.8/1.2",
)


def steered_steps(task: Task) -> Iterator[Step]:
    for seed in SEEDS:
        yield _head(replace(task, seed=task.seed + seed), seeded(HEAD, seed), seeded(REMEMBERING, seed))
    names = [seeded(HEAD, seed) for seed in SEEDS]
    out = "evaluation-rules"
    command: Command = (
        *("eval", *task.common, *task.heads(names), "--group", f"{HEAD}={','.join(names)}"),
        *("--strengths", "0.3", "0.5", "0.8", "1.2", "--rules", *RULES),
        *("--prompts", task.at(JUDGE_PROMPTS), "--gold", BY_REPLY, "--max-tokens", REPLY_TOKENS),
        *("--num-replies", "4", "--max-num-seqs", "256", "--at-kl", "1", "2", "4", "--best-of", *BEST_OF),
        *("--static-bias", task.at("evaluation-claims/static_bias.json"), "--out", task.at(out)),
    )
    yield Step(out, command, f"{out}/report.json")


def _head(task: Task, name: str, start: str) -> Step:
    return Step(
        name,
        (
            *("train", *task.common, "--name", name, "--start-from", task.at(f"heads/{start}")),
            *("--rollouts", task.at("replies.parquet"), "--features", task.at("features/replies")),
            *("--reward-from", "reply", "--parts", "value", "--value.form", "gru", "--value.discount", "1"),
            *("--value.optimiser.epochs", "6"),
            *("--head-folder", task.at(f"heads/{name}"), "--run-folder", task.at(f"runs/{name}")),
        ),
        f"heads/{name}",
    )
