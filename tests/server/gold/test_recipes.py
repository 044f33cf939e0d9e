from __future__ import annotations

import json
import lzma
from pathlib import Path

import pytest

from trimtab.server import cli
from trimtab.server.commands.eval import EvalConfig
from trimtab.server.commands.features import FeaturesConfig
from trimtab.server.commands.flags import parse
from trimtab.server.commands.rollouts import RolloutsConfig
from trimtab.server.commands.train import TrainCommandConfig
from trimtab.server.commands.train_lora import TrainLoraConfig
from trimtab.server.gold.__main__ import main
from trimtab.server.gold.begun import write_begun
from trimtab.server.gold.recipes import METHODS, Step, Task

CONFIGS = {
    "rollouts": RolloutsConfig,
    "features": FeaturesConfig,
    "train": TrainCommandConfig,
    "eval": EvalConfig,
}
STEPS = list(Task("model", Path("runs")).steps())


@pytest.mark.parametrize("step", STEPS, ids=lambda step: step.name)
def test_a_step_is_a_command_that_the_command_line_knows(step: Step):
    command, *flags = step.command
    config = TrainLoraConfig if "--lora" in flags else CONFIGS[command]
    parse(config, command, [flag for flag in flags if flag != "--lora"])


def test_every_method_is_tried_in_both_forms_and_all_of_them_are_judged():
    names = {step.name for step in STEPS}
    assert all({f"{method}-lowrank", f"{method}-tied"} <= names for method in METHODS)
    for step, form in zip(STEPS[-2:], ("lowrank", "tied"), strict=True):
        assert all(f"runs/heads/{method}-{form}" in step.command for method in METHODS)


def test_begun_prompts_are_beginnings_of_what_the_policy_wrote(tmp_path: Path):
    rows = [{"prompt": "Once", "completion": " upon a time"}, {"prompt": "Lily", "completion": " ran"}]
    (tmp_path / "rollouts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    write_begun(tmp_path / "rollouts.jsonl", tmp_path / "begun.jsonl", per_reply=20)
    begun = [json.loads(line)["prompt"] for line in (tmp_path / "begun.jsonl").read_text().splitlines()]
    assert set(begun) == {"Once", "Once upon", "Once upon a", "Lily"}


def test_a_step_that_is_done_is_skipped_and_one_that_fails_ends_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    with lzma.open(tmp_path / "stories.xz", "wt") as file:
        json.dump([f"Story {number} begins here and goes on for a while." for number in range(800)], file)
    out = tmp_path / "out"
    (out / "replies.parquet").mkdir(parents=True)
    ran: list[str] = []

    def run(command: tuple[str, ...]) -> int:
        ran.append(command[0])
        return 1

    monkeypatch.setattr(cli, "main", run)
    flags = ["--stories", str(tmp_path / "stories.xz"), "--out", str(out)]
    assert main([*flags, "--only", "replies"]) == 0
    assert ran == []
    assert main(flags) == 1
    assert ran == ["rollouts"]
    assert not (out / "steps.json").exists()
    assert len((out / "train.jsonl").read_text().splitlines()) == 700
    assert main([*flags, "--only", "nonsense"]) == 1
    assert "no step nonsense; steps are replies" in capsys.readouterr().err
