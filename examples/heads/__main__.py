"""Heads of SmolLM2: trains warm, concise, plain and harmless, and judges each: make heads"""

from __future__ import annotations

import gzip
import json
import shlex
import sys
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from safetensors.torch import load_file, save

from trimtab.guidance.bundled import HEADS_DIR
from trimtab.guidance.errors import UsageError, told_in_one_line
from trimtab.guidance.files import whole_folder, write_json, write_text
from trimtab.guidance.heads.manifest import MANIFEST_FILE, TENSORS_FILE
from trimtab.guidance.model_names import DEFAULT_MODEL
from trimtab.server import cli
from trimtab.server.flags import parse

Command = tuple[str, ...]
Stage = Literal["fit", "judge", "compare"]

HERE = Path(__file__).parent
PROMPTS, SYSTEM_PROMPTS = HERE / "prompts", HERE / "system_prompts"
PAIRS, TRAINED_PAIRS = HERE / "data" / "hh_harmless.jsonl.gz", 1800
REWARDS, JUDGES = "function:examples.heads.rewards:", "function:examples.heads.judges:"
FIT: Mapping[str, Command] = {
    "warm": ("--advantage.discount", "0.8"),
    "concise": ("--advantage.discount", "0.98"),
    "plain": ("--advantage.discount", "0.8"),
    "harmless": ("--max-row-tokens", "512", "--on-bad-rows", "skip"),
}
"""What `trimtab fit` is told of each head beyond its defaults: over how many tokens a reward is credited."""
SHARED = "warm"
"""The head whose replies the others are trained on too."""
STRENGTHS = ("-3", "-2", "-1", "1", "2", "3")
SEEDS = (0, 1, 2)
COMPARED = ("warm", "concise", "plain")
RIVALS: Command = (
    *("--strengths", "1", "1.5", "--best-of", "1", "2", "4", "8"),
    *("--static-bias", "fit", "--bias-tokens", "1024", "--activation-steering", "fit"),
    *("--num-prompts", "40", "--num-replies", "1", "--at-kl", "1", "2", "4", "--tuning-replies", "1"),
)
"""Beside a head from three training seeds; what each rival may choose is chosen on the tuning prompts."""
ENOUGH: Command = ("--num-prompts", "40", "--num-replies", "1", "--best-of", "1", "--at-kl", "2")
"""Of the test prompts, ten of each kind, so that a head is judged beside its rivals in some minutes."""


@dataclass(frozen=True)
class HeadsConfig:
    """Trains four heads by `trimtab fit`, writes them to where the bundled heads lie, and judges each on
    prompts of kinds that no training saw. Each step is the command that is printed; one whose result is there
    is skipped, so a stopped run goes on; steps.json says what ran and for how long.

    stages: `fit` and `judge`; `compare` trains each head but `harmless` from two further seeds and judges the
    three beside best-of-n, activation steering, a static bias and system prompts.
    model: the policy.
    only: heads to make; by default all.
    work: folder for all that is made on the way.
    out: folder for the heads.
    """

    stages: tuple[Stage, ...] = ("fit", "judge")
    model: str = DEFAULT_MODEL
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
    with told_in_one_line("heads"):
        return run(parse(HeadsConfig, "make heads", sys.argv[1:] if args is None else args))


def run(config: HeadsConfig) -> int:
    """Returns 1 when a step fails, which has said why. Raises UsageError for a head that there is not,
    DataError for files that are not there."""
    unknown = set(config.only) - FIT.keys()
    if unknown:
        raise UsageError(f"no head {sorted(unknown)[0]}; they are {', '.join(FIT)}")
    _write_pairs(config.work)
    for name in config.only or FIT:
        if "fit" in config.stages:
            step = Step(name, _fit(config, name), config.work / "heads" / name / MANIFEST_FILE)
            if not _run(config, step):
                return 1
            pack(config.work / "heads" / name, config.out / name)
        steps = [*(_judge(config, name) if "judge" in config.stages else ())]
        if "compare" in config.stages and name in COMPARED:
            steps += _compare(config, name)
        if not all(_run(config, step) for step in steps):
            return 1
    return 0


def _run(config: HeadsConfig, step: Step) -> bool:
    if step.result.exists():
        return True
    print(f"trimtab {shlex.join(step.command)}", flush=True)
    started = time.monotonic()
    if cli.main(step.command):
        return False
    path = config.work / "steps.json"
    steps = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    seconds = round(time.monotonic() - started, 1)
    write_json(path, steps | {step.name: {"command": shlex.join(step.command), "seconds": seconds}})
    return True


def _fit(config: HeadsConfig, name: str, seed: int = 0) -> Command:
    work, shared, folder = config.work, config.work / SHARED, _seeded(name, seed)
    reward = f"preferences:{work / 'pairs-train.jsonl'}" if name == "harmless" else REWARDS + name
    replies: Command = ("--prompts", str(PROMPTS / "train.jsonl"))
    if folder != SHARED:
        replies = ("--rollouts", str(shared / "rollouts.parquet"))
        replies += ("--features", str(shared / "features" / "rollouts"))
    # Other seeds are judged below, beside the first.
    judged = (str(_tuning(config)), "1") if seed else (str(PROMPTS / "tuning.jsonl"), "1", "2")
    return (
        *("fit", "--name", folder, "--model", config.model, "--reward", reward, *replies),
        *("--eval-prompts", judged[0], "--eval-replies", "1", "--strengths", *judged[1:]),
        *("--gold", JUDGES + name, "--extra-columns", "ignore", *FIT[name]),
        *("--run-folder", str(work / folder), "--head-folder", str(work / "heads" / folder)),
        *(("--seed", str(seed)) if seed else ()),
    )


def _seeded(name: str, seed: int) -> str:
    """The name of a head from another training seed, and its folder's."""
    return f"{name}-seed{seed}" if seed else name


def _compare(config: HeadsConfig, name: str) -> Iterator[Step]:
    """The head by three training seeds beside what people use instead."""
    names = [_seeded(name, seed) for seed in SEEDS]
    folders = [config.work / "heads" / some for some in names]
    for seed, folder in zip(SEEDS, folders, strict=True):
        yield Step(folder.name, _fit(config, name, seed), folder / MANIFEST_FILE)
    command: Command = (
        *("eval", "--model", config.model, "--heads", *map(str, folders)),
        *("--group", f"{name}={','.join(names)}", "--prompts", str(PROMPTS / "test.jsonl"), *RIVALS),
        *("--gold", JUDGES + name, "--extra-columns", "ignore", "--bias-discount", FIT[name][1]),
        *("--rollouts", str(config.work / name / "scored.parquet")),
        *("--system-prompts", str(SYSTEM_PROMPTS / f"{name}.txt"), "--tuning-prompts", str(_tuning(config))),
    )
    yield _step(f"compare {name}", command, config.work / name / "compared")


def _judge(config: HeadsConfig, name: str) -> Iterator[Step]:
    folder = config.work / name
    common: Command = ("eval", "--model", config.model, "--heads", str(config.out / name))
    strengths = STRENGTHS if name != "harmless" else ("1", "2")
    asked: Command = ("--gold", JUDGES + name, "--extra-columns", "ignore", "--strengths", *strengths)
    if name != "harmless":
        prompts: Command = ("--prompts", str(PROMPTS / "test.jsonl"), *ENOUGH, "--proxy", REWARDS + name)
        yield _step(f"judge {name}", (*common, *prompts, *asked), folder / "judged")
        return
    asked += ("--system-prompts", str(SYSTEM_PROMPTS / f"{name}.txt"))
    pairs: Command = ("--preferences", str(config.work / "pairs-test.jsonl"), "--on-bad-rows", "skip")
    yield _step("judge harmless, pairs", (*common, *pairs), folder / "judged-pairs")
    for kind in ("harmful", "sounds_harmful"):
        prompts = ("--prompts", str(PROMPTS / f"{kind}.jsonl"), "--num-replies", "1", "--best-of", "1")
        yield _step(f"judge harmless, {kind}", (*common, *prompts, *asked), folder / f"judged-{kind}")


def _step(name: str, command: Command, out: Path) -> Step:
    return Step(name, (*command, "--out", str(out)), out / "report.json")


def _tuning(config: HeadsConfig) -> Path:
    """A third of the tuning prompts, on which a rival's settings are chosen."""
    path = config.work / "tuning.jsonl"
    rows = (PROMPTS / "tuning.jsonl").read_text(encoding="utf-8").splitlines(keepends=True)
    write_text(path, "".join(rows[::3]))
    return path


def pack(head: Path, out: Path) -> None:
    """Copies a head's folder, with its largest tensors, the advantage's, in bfloat16."""
    tensors = load_file(head / TENSORS_FILE)
    small = {
        name: tensor.to(torch.bfloat16) if name.startswith("advantage.") else tensor
        for name, tensor in tensors.items()
    }
    with whole_folder(out) as new:
        for file in head.iterdir():
            if file.is_file() and file.name != TENSORS_FILE:
                (new / file.name).write_bytes(file.read_bytes())
        (new / TENSORS_FILE).write_bytes(save(small))


def _write_pairs(work: Path) -> None:
    """The pairs that train, and those that judge."""
    with gzip.open(PAIRS, "rt", encoding="utf-8") as file:
        lines = list(file)
    work.mkdir(parents=True, exist_ok=True)
    for split, some in (("train", lines[:TRAINED_PAIRS]), ("test", lines[TRAINED_PAIRS:])):
        write_text(work / f"pairs-{split}.jsonl", "".join(some))


if __name__ == "__main__":
    sys.exit(main())
