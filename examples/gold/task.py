"""The gold task: where its files lie, and a step of it as the command line that a user would give."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

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
