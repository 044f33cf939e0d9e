from __future__ import annotations

import json
import lzma
from pathlib import Path

import pytest

from examples.gold.__main__ import main
from examples.gold.comparisons import LORA_SETTINGS, all_steps, chosen_lora
from examples.gold.iterated import ROUNDS, STRENGTHS
from examples.gold.recipes import ABLATIONS, METHODS, seeded
from examples.gold.task import CLAIMED, REFERENCE, SEEDS, Step, Task, load_prompts, write_begun
from trimtab.guidance.errors import DataError
from trimtab.server import cli
from trimtab.server.commands.eval.config import EvalConfig
from trimtab.server.commands.features.config import FeaturesConfig
from trimtab.server.commands.rollouts.config import RolloutsConfig
from trimtab.server.commands.train.config import TrainCommandConfig
from trimtab.server.flags import parse
from trimtab.server.rollouts.tuned import TrainLoraConfig

CONFIGS = {
    "rollouts": RolloutsConfig,
    "features": FeaturesConfig,
    "train": TrainCommandConfig,
    "eval": EvalConfig,
}
STEPS = list(all_steps(Task("model", Path("runs"))))
STEP = {step.name: step for step in STEPS}


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


def test_every_claimed_head_is_trained_from_three_seeds_by_one_command():
    for name in CLAIMED:
        first, *others = (STEP[seeded(name, seed)].command for seed in SEEDS)
        assert len(others) == 2
        for seed, other in enumerate(others, 1):
            changed = {(a, b) for a, b in zip(first, other, strict=True) if a != b}
            named = seeded(name, seed)
            folders = {(f"runs/{kind}/{name}", f"runs/{kind}/{named}") for kind in ("heads", "runs")}
            assert changed == {("0", str(seed)), (name, named), *folders}


def test_a_round_learns_from_all_replies_of_the_rounds_before_and_no_later_ones():
    first, second = (Path(_value(STEP[name].command, "--rollouts")) for name in ROUNDS)
    written = {n: Path(_value(s.command, "--out")) for n, s in STEP.items() if n.startswith("rounds/")}
    assert len(written) == 1 + 2 * len(STRENGTHS)
    for name, path in written.items():
        assert path.is_relative_to(second)
        assert path.parent != second  # or those of the first round would not be read
        assert path.is_relative_to(first) != name.startswith(f"rounds/{ROUNDS[1]}")
        assert Path(STEP[name].result) == path.relative_to("runs")
    assert _value(STEP[f"rounds/{ROUNDS[1]}-1"].command, "--heads") == f"runs/heads/{ROUNDS[0]}"


def _value(command: tuple[str, ...], flag: str) -> str:
    return command[command.index(flag) + 1]


def test_an_ablation_changes_one_thing_of_the_reference():
    reference = STEP[REFERENCE].command
    values = {name: _changes(reference, STEP[name].command) for name in ABLATIONS}
    assert values.pop(f"{REFERENCE}-whole") == {
        "--rollouts": "runs/judged.parquet",
        "--advantage.discount": "1",
        "--value.discount": "1",
    }
    assert all(len(set(changed.values())) == 1 for changed in values.values())
    assert values[f"{REFERENCE}-rank32"] == {"--advantage.rank": "32"}
    assert _changes(reference, STEP["mc-tied"].command) == {"--advantage.form": "tied"}


def _changes(reference: tuple[str, ...], command: tuple[str, ...]) -> dict[str, str]:
    """Flags whose value differs, but for those that name what is made."""
    made = ("--name", "--head-folder", "--run-folder")
    triples = zip(reference, reference[1:], command[1:], strict=False)
    return {flag: new for flag, old, new in triples if old != new and flag not in made}


def test_settings_are_chosen_on_other_prompts_than_are_judged_on():
    tuning, judge = "runs/tuning.jsonl", "runs/judge.jsonl"
    for name in LORA_SETTINGS:
        assert tuning in STEP[f"lora/{name}"].command
        assert judge not in STEP[f"lora/{name}"].command
    assert tuning in STEP["evaluation-lora"].command
    claims = STEP["evaluation-claims"].command
    assert claims[claims.index("--tuning-prompts") + 1] == tuning
    assert claims[claims.index("--prompts") + 1] == judge


def test_no_prompt_is_judged_that_was_trained_or_tuned_on(tmp_path: Path):
    beginnings = [f"A story of {number % 390} begins here and so on" for number in range(800)]
    with lzma.open(tmp_path / "stories.xz", "wt") as file:
        json.dump(beginnings, file)
    prompts = load_prompts(tmp_path / "stories.xz")
    assert len(prompts["train"]) == 600
    assert not set(prompts["train"]) & {*prompts["tuning"], *prompts["judge"]}
    with lzma.open(tmp_path / "stories.xz", "wt") as file:
        json.dump([f"A story of {number // 2} begins here and so on" for number in range(1400)], file)
    prompts = load_prompts(tmp_path / "stories.xz")
    assert (len(prompts["train"]), len(prompts["tuning"]), len(prompts["judge"])) == (600, 50, 350)
    assert not set(prompts["judge"]) & {*prompts["train"], *prompts["tuning"]}


def test_the_setting_of_lora_is_the_best_of_those_that_reach_most_prices(tmp_path: Path):
    scores = {("LoRA a", 1): 3.0, ("LoRA a", 2): 4.0, ("LoRA b", 1): 2.0, ("LoRA b", 2): 6.0}
    scores |= {("LoRA c", 1): 9.0, ("best-of-n by gold", 1): 9.0, ("best-of-n by gold", 2): 9.0}
    rows = [
        {"curve": curve, "kl": kl, "score": "gold", "estimate": {"mean": mean}}
        for (curve, kl), mean in scores.items()
    ]
    path = tmp_path / "report.json"
    path.write_text(json.dumps({"frontier": {"gold": ["gold"], "at_kl": rows}}))
    assert chosen_lora(path) == "b"
    path.write_text(json.dumps({"frontier": {"gold": ["gold"], "at_kl": []}}))
    with pytest.raises(DataError, match="no setting of LoRA"):
        chosen_lora(path)
    with pytest.raises(DataError, match="run step evaluation-lora"):
        chosen_lora(tmp_path / "none.json")


def test_begun_prompts_are_beginnings_of_what_the_policy_wrote(tmp_path: Path):
    rows = [{"prompt": "Once", "completion": " upon a time"}, {"prompt": "Lily", "completion": " ran"}]
    (tmp_path / "rollouts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    write_begun(tmp_path / "rollouts.jsonl", tmp_path / "begun.jsonl", per_reply=20)
    begun = [json.loads(line)["prompt"] for line in (tmp_path / "begun.jsonl").read_text().splitlines()]
    assert set(begun) == {"Once", "Once upon", "Once upon a", "Lily"}


def test_the_adapter_that_is_judged_is_the_one_that_the_tuning_prompts_chose(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    with lzma.open(tmp_path / "stories.xz", "wt") as file:
        json.dump([f"Story {number} begins here and goes on." for number in range(800)], file)
    rows = [{"curve": "LoRA lr1e-3-tau2", "kl": 1, "score": "gold", "estimate": {"mean": 2.0}}]
    (tmp_path / "evaluation-lora").mkdir()
    report = {"frontier": {"gold": ["gold"], "at_kl": rows}}
    (tmp_path / "evaluation-lora" / "report.json").write_text(json.dumps(report))
    ran: list[tuple[str, ...]] = []
    monkeypatch.setattr(cli, "main", lambda command: ran.append(command) or 0)
    flags = ["--stories", str(tmp_path / "stories.xz"), "--out", str(tmp_path)]
    assert main([*flags, "--only", "lora"]) == 0
    [command] = ran
    assert command[command.index("--adapter") + 1] == str(tmp_path / "lora/lr1e-3-tau2/adapter")
    assert command[command.index("--measure") + 1] == str(tmp_path / "judge.jsonl")
    assert "lr1e-3-tau2" in json.loads((tmp_path / "steps.json").read_text())["lora"]["command"]


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
    lines = {name: (out / f"{name}.jsonl").read_text().splitlines() for name in ("train", "tuning", "judge")}
    assert {name: len(rows) for name, rows in lines.items()} == {"train": 600, "tuning": 100, "judge": 100}
    with pytest.raises(SystemExit):
        main([*flags, "--only", "nonsense"])
    assert "no step nonsense; steps are replies" in capsys.readouterr().err
