"""Gold task: trains heads by every method and evaluates them beside what they must beat: make gold"""

from __future__ import annotations

import json
import os
import shlex
import sys
import time
from dataclasses import dataclass
from pathlib import Path

from examples.gold.comparisons import all_steps, chosen_lora
from examples.gold.reward import LEXICON_VARIABLE
from examples.gold.task import (
    BEGUN_PROMPTS,
    CHOSEN_LORA,
    LORA_CHOICE,
    Command,
    Task,
    write_begun,
    write_prompts,
)
from trimtab.guidance.errors import UsageError, told_in_one_line
from trimtab.guidance.files import write_json
from trimtab.server import cli
from trimtab.server.flags import parse


@dataclass(frozen=True)
class GoldConfig:
    """Runs the gold task: rollouts, features, heads by every method in both forms, those that are claimed by
    three training seeds, an ablation, LoRA in five settings, and evaluations, each as the command that is
    printed. A step whose result is there is skipped, so a stopped run goes on; steps.json says what ran and
    for how long.

    model: stories656K's folder.
    stories: list of stories whose first words are the prompts.
    lexicon: zip of the opinion lexicon that rewards.
    out: folder for all that is made.
    only: names of the steps to run; by default all.
    """

    model: Path = Path("../shared/models/stories656K")
    stories: Path = Path("../shared/data/tinystories/tinystories_1000.json.xz")
    lexicon: Path = Path("../shared/data/nltk/opinion_lexicon.zip")
    out: Path = Path("runs/gold")
    only: tuple[str, ...] = ()
    seed: int = 0


def main(args: list[str] | None = None) -> int:
    with told_in_one_line("gold"):
        return run(parse(GoldConfig, "make gold", sys.argv[1:] if args is None else args))


def run(config: GoldConfig) -> int:
    """Returns 1 when a step fails, which has said why. Raises UsageError for a step that there is not,
    DataError for files that are not there."""
    os.environ[LEXICON_VARIABLE] = str(config.lexicon)
    task = Task(str(config.model), config.out, config.seed)
    steps = list(all_steps(task))
    unknown = set(config.only) - {step.name for step in steps}
    if unknown:
        raise UsageError(f"no step {sorted(unknown)[0]}; steps are {', '.join(step.name for step in steps)}")
    write_prompts(config.stories, config.out)
    for step in steps:
        if (not config.only or step.name in config.only) and not (config.out / step.result).exists():
            if BEGUN_PROMPTS in " ".join(step.command):
                write_begun(config.out / "replies.parquet", config.out / BEGUN_PROMPTS, seed=config.seed)
            command = _settled(step.command, config.out)
            print(f"trimtab {shlex.join(command)}", flush=True)
            started = time.monotonic()
            if cli.main(command):
                return 1
            _record(config.out / "steps.json", step.name, command, time.monotonic() - started)
    return 0


def _settled(command: Command, out: Path) -> Command:
    """The command with the setting of LoRA that was chosen in place of CHOSEN_LORA."""
    if not any(CHOSEN_LORA in argument for argument in command):
        return command
    chosen = chosen_lora(out / LORA_CHOICE)
    return tuple(argument.replace(CHOSEN_LORA, chosen) for argument in command)


def _record(path: Path, step: str, command: Command, seconds: float) -> None:
    steps = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    steps[step] = {"command": f"trimtab {shlex.join(command)}", "seconds": round(seconds, 1)}
    write_json(path, steps)


if __name__ == "__main__":
    sys.exit(main())
