"""Gold task: its prompts, where its files lie, and a step of it as the command line that a user types."""

from __future__ import annotations

import json
import lzma
import random
from collections.abc import Iterable, Set
from dataclasses import dataclass
from pathlib import Path

from trimtab.guidance.data.load import load_rollouts
from trimtab.guidance.errors import DataError

BY_REPLY = "function:examples.gold.reward:score"
BY_TOKEN = "function:examples.gold.reward:score_tokens"
FORMS = ("lowrank", "tied")
REPLY_TOKENS, WINDOW_TOKENS = "200", "16"
TRAIN_PROMPTS, TUNING_PROMPTS, JUDGE_PROMPTS = "train.jsonl", "tuning.jsonl", "judge.jsonl"
BEGUN_PROMPTS = "begun.jsonl"
CHOSEN_LORA = "{chosen}"
"""In a command: the setting of LoRA that the tuning prompts chose, known once they have."""
LORA_CHOICE, LORA_POINTS = "evaluation-lora/report.json", "lora/best/points.json"
CLAIMED = ("mc-lowrank", "mc-windows-lowrank", "ppo-lowrank")
"""Heads that the README claims something of: each trained with SEEDS."""
SEEDS = (0, 1, 2)
REFERENCE = "mc-lowrank"
"""What the ablation changes one thing of at a time."""

Command = tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Step:
    """A command, and what it leaves behind: where that is, the step is done."""

    name: str
    command: Command
    result: str


@dataclass(frozen=True, slots=True)
class Task:
    """model: the policy. folder: holds the prompts and all that the steps make."""

    model: str
    folder: Path
    seed: int = 0

    def at(self, name: str) -> str:
        return str(self.folder / name)

    @property
    def common(self) -> Command:
        return ("--model", self.model, "--seed", str(self.seed))

    def heads(self, names: Iterable[str]) -> Command:
        return ("--heads", *(self.at(f"heads/{name}") for name in names))


NUM_TRAIN, NUM_TUNING = 600, 100
_NUM_WORDS, _NUM_CHARACTERS = 8, 200


def write_prompts(stories: Path, folder: Path) -> None:
    """train.jsonl, tuning.jsonl and judge.jsonl with rows {prompt}."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, prompts in load_prompts(stories).items():
        rows = "".join(json.dumps({"prompt": prompt}) + "\n" for prompt in prompts)
        (folder / f"{name}.jsonl").write_text(rows, encoding="utf-8")


def load_prompts(stories: Path) -> dict[str, list[str]]:
    """The first words of stories that begin in ASCII: prompts to train on, to choose settings on, to judge.

    Many stories begin alike. Training sees prompts as often as they come; what settings are chosen on are
    prompts that training did not see, and what is judged on none that either saw, each once.

    stories: a list of strings as JSON, xz-compressed. Raises DataError where it cannot be read.
    """
    try:
        with lzma.open(stories, "rt", encoding="utf-8") as file:
            texts = json.load(file)
    except (OSError, lzma.LZMAError, ValueError) as error:
        raise DataError(f"{stories} cannot be read as a list of stories ({error})") from error
    prompts = [" ".join(t.split()[:_NUM_WORDS]) for t in texts if t[:_NUM_CHARACTERS].isascii()]
    train, tuning = prompts[:NUM_TRAIN], prompts[NUM_TRAIN : NUM_TRAIN + NUM_TUNING]
    tuning = _unseen(tuning, set(train))
    return {
        "train": train,
        "tuning": tuning,
        "judge": _unseen(prompts[NUM_TRAIN + NUM_TUNING :], {*train, *tuning}),
    }


def _unseen(prompts: Iterable[str], seen: Set[str]) -> list[str]:
    return [prompt for prompt in dict.fromkeys(prompts) if prompt not in seen]


def write_begun(rollouts: Path, out: Path, *, per_reply: int = 1, seed: int = 0) -> None:
    """Rows {prompt}: each prompt with the words of a reply to it up to some word. Reply strings only.

    Raises DataError where the rollouts cannot be read.
    """
    draw = random.Random(seed)
    rows = dict.fromkeys(
        row.prompt + row.completion[: draw.choice(_cuts(row.completion))]
        for row in load_rollouts(rollouts).rows
        if isinstance(row.prompt, str)
        for _ in range(per_reply)
    )
    out.write_text("".join(json.dumps({"prompt": row}) + "\n" for row in rows), encoding="utf-8")


def _cuts(reply: str) -> list[int]:
    """Where the reply may be cut: before any of its words."""
    return [0, *(at for at, character in enumerate(reply) if character.isspace() and at)]
