"""Heads of SmolLM2-135M-Instruct: trains warm, concise, plain and harmless, and judges each beside what people
use instead: make heads"""

from __future__ import annotations

import gzip
import shlex
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from trimtab.guidance.bundled import HEADS_DIR
from trimtab.guidance.files import write_text
from trimtab.guidance.heads.manifest import MANIFEST_FILE
from trimtab.server import cli
from trimtab.server.flags import parse

HERE = Path(__file__).parent
PROMPTS, PAIRS = HERE / "prompts", HERE / "data" / "hh_harmless.jsonl.gz"
TRAINED_PAIRS = 1800
REWARDS = "function:examples.heads.rewards:"
JUDGES = "function:examples.heads.judges:"
ADVANTAGES = {
    "warm": ("--advantage.discount", "0.8"),
    "concise": ("--advantage.discount", "0.98"),
    "plain": ("--advantage.discount", "0.8"),
    "harmless": (),
}
"""What fit is told of each head, beyond its defaults: over how many tokens a reward is credited."""
STRENGTHS = ("-3", "-2", "-1", "1", "2", "3")
SHARED = "warm"
"""The head whose replies the others are trained on too."""

Command = tuple[str, ...]
Stage = Literal["fit", "judge"]


@dataclass(frozen=True)
class HeadsConfig:
    """Trains the four heads by `trimtab fit`, writes them to where the product has its bundled heads, and judges
    each on prompts of kinds that no training saw. Each step is the command that is printed; one whose result is
    there is skipped, so a stopped run goes on; steps.json says what ran and for how long.

    stages: `fit` (under two hours on two cores) and `judge` (about as long).
    model: the policy.
    only: heads; by default all.
    work: folder for all that is made on the way.
    out: folder for the heads.
    """

    stages: tuple[Stage, ...] = ("fit", "judge")
    model: str = "smollm2"
    only: tuple[str, ...] = ()
    work: Path = Path("runs/heads")
    out: Path = HEADS_DIR


@dataclass(frozen=True, slots=True)
class Step:
    """A command, and what it leaves behind: where that is, the step is done."""

    name: str
    command: Command
    result: Path


def main(args: list[str] | None = None) -> int:
    config = parse(HeadsConfig, "make heads", sys.argv[1:] if args is None else args)
    unknown = set(config.only) - ADVANTAGES.keys()
    if unknown:
        print(f"heads: no head {sorted(unknown)[0]}; they are {', '.join(ADVANTAGES)}", file=sys.stderr)
        return 2
    _write_pairs(config.work)
    for name in config.only or ADVANTAGES:
        for step in _steps(config, name):
            if not step.result.exists():
                print(f"trimtab {shlex.join(step.command)}", flush=True)
                started = time.monotonic()
                if cli.main(step.command):
                    return 1
                _record(config.work / "steps.json", step, time.monotonic() - started)
        if "fit" in config.stages:
            pack(config.work / "heads" / name, config.out / name)
    return 0


def _steps(config: HeadsConfig, name: str) -> Iterator[Step]:
    work, run = config.work, config.work / name
    if "fit" in config.stages:
        yield Step(name, _fit(config, name), work / "heads" / name / MANIFEST_FILE)
    if "judge" in config.stages:
        yield Step(f"judge {name}", _judge(config, name), run / "judged" / "report.json")


def _fit(config: HeadsConfig, name: str) -> Command:
    work = config.work
    reward = f"preferences:{work / 'pairs-train.jsonl'}" if name == "harmless" else REWARDS + name
    replies: Command = ("--prompts", str(PROMPTS / "train.jsonl"))
    if name != SHARED:
        shared = work / SHARED
        replies = (
            "--rollouts",
            str(shared / "rollouts.parquet"),
            "--features",
            str(shared / "features/rollouts"),
        )
    return (
        *("fit", "--name", name, "--model", config.model, "--reward", reward, *replies),
        *("--eval-prompts", str(PROMPTS / "tuning.jsonl"), "--eval-replies", "1", "--strengths", "1", "2"),
        *("--gold", JUDGES + name, *ADVANTAGES[name]),
        *("--run-folder", str(work / name), "--head-folder", str(work / "heads" / name)),
    )


def _judge(config: HeadsConfig, name: str) -> Command:
    work = config.work
    common = (
        "eval",
        "--model",
        config.model,
        "--heads",
        str(config.out / name),
        "--out",
        str(work / name / "judged"),
    )
    if name == "harmless":
        return (*common, "--preferences", str(work / "pairs-test.jsonl"), "--on-bad-rows", "skip")
    return (
        *common,
        *("--prompts", str(PROMPTS / "test.jsonl"), "--tuning-prompts", str(PROMPTS / "tuning.jsonl")),
        *(
            "--gold",
            JUDGES + name,
            "--proxy",
            REWARDS + name,
            "--strengths",
            *STRENGTHS,
            "--num-replies",
            "2",
        ),
        *(
            "--static-bias",
            "fit",
            "--rollouts",
            str(work / name / "scored.parquet"),
            "--best-of",
            "1",
            "2",
            "4",
        ),
    )


def _write_pairs(work: Path) -> None:
    """The pairs that train, and those that judge."""
    with gzip.open(PAIRS, "rt", encoding="utf-8") as file:
        lines = list(file)
    for split, some in (("train", lines[:TRAINED_PAIRS]), ("test", lines[TRAINED_PAIRS:])):
        write_text(work / f"pairs-{split}.jsonl", "".join(some))
