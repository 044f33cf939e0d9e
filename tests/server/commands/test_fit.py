"""`trimtab fit` with a tiny random model: end to end, stopped between its stages, and told nonsense."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from types import SimpleNamespace

import pyarrow.parquet as pq
import pytest
from local_judge import Say, local_judge
from tiny_models import SIZES, save_random_model
from transformers import LlamaConfig

from trimtab.guidance.heads.manifest import load_manifest
from trimtab.guidance.heads.store import load_head
from trimtab.server.cli import main
from trimtab.server.commands.fit import run as fit_run
from trimtab.server.commands.fit.check import credit_of
from trimtab.server.commands.fit.config import ADVANTAGES, advantage_for

REWARDS = """
def vowels(prompt, reply):
    return float(sum(c in "aeiou" for c in reply))

def per_token(prompt, reply, tokens):
    return [float(len(text)) for text in tokens]

def too_few(prompt, reply, tokens):
    return [1.0]

def a_word(prompt, reply):
    return "good"

def fails(prompt, reply):
    raise RuntimeError("no lexicon")

def leaves(prompt, reply):
    raise SystemExit(3)

def swapped(reply, prompt):
    return 1.0

def constant(prompt, reply):
    return 1.0

def fails_for_some(prompt, reply):
    if prompt.endswith("1"):
        raise RuntimeError("no lexicon")
    return vowels(prompt, reply)
"""
STAGES = ("_sample", "_score", "_train", "_judge")


@pytest.fixture(scope="module")
def policy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_random_model(LlamaConfig(**SIZES), tmp_path_factory.mktemp("policies") / "tiny")


@pytest.fixture
def flags(policy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delitem(sys.modules, "fit_rewards", raising=False)
    monkeypatch.setattr("trimtab.guidance.evaluation.page.all_pictures", lambda report: [])
    Path("fit_rewards.py").write_text(REWARDS)
    write("prompts.jsonl", [{"prompt": f"say {i}"} for i in range(23)])
    write("test.jsonl", [{"prompt": f"tell {i}"} for i in range(3)])
    pairs = [{"prompt": f"ask {i}", "chosen": f"aa{i % 7}", "rejected": f"zz{i % 5}"} for i in range(24)]
    write("pairs.jsonl", pairs)
    return [
        *("--model", str(policy), "--max-tokens", "6", "--num-replies", "2", "--eval-replies", "1"),
        *("--strengths", "1", "--window", "4", "--kv-cache-gib", "0.01", "--max-num-seqs", "64"),
        *("--advantage.rank", "4", "--value.width", "8", "--advantage.optimiser.epochs", "1"),
    ]


OWN = ("--name", "warm", "--prompts", "prompts.jsonl", "--reward", "function:fit_rewards:vowels")


def write(name: str, rows: list[dict]) -> None:
    Path(name).write_text("".join(json.dumps(row) + "\n" for row in rows))


def fit(*args: str, code: int = 0) -> None:
    assert main(["fit", *args]) == code


def complaint(capsys: pytest.CaptureFixture[str], *args: str, code: int = 1) -> str:
    capsys.readouterr()
    fit(*args, code=code)
    return capsys.readouterr().err.splitlines()[-1]


def test_a_run_stopped_between_stages_goes_on_and_makes_one_head(flags, monkeypatch, capsys):
    """Each try is stopped before one stage later than the one before it, and does no stage twice."""
    done = list[str]()
    for name in STAGES:
        real = getattr(fit_run.Fit, name)
        monkeypatch.setattr(fit_run.Fit, name, lambda self, n=name, r=real: (done.append(n), r(self)))
    for stage in STAGES[1:]:
        with monkeypatch.context() as patched:
            patched.setattr(fit_run.Fit, stage, stop)
            with pytest.raises(StoppedError):
                main(["fit", *flags, *OWN])
    assert capsys.readouterr().out.count("│ train ") == 3  # of plans: none of these tries has trained
    fit(*flags, *OWN)
    assert done == [*STAGES]
    shown = capsys.readouterr().out
    assert "stage 3/4: training: done" in shown
    assert "│ train " not in shown
    assert "--heads heads/warm" in shown
    _, manifest = load_head(Path("heads/warm"))
    assert manifest.parts.advantage is not None
    assert (manifest.parts.advantage.loss, manifest.parts.reward) == ("monte_carlo", None)
    assert "function:fit_rewards:vowels" in Path("heads/warm/README.md").read_text()
    rows = pq.read_table("runs/warm/scored.parquet").to_pylist()
    assert all(sum(row["token_rewards"]) == pytest.approx(row["reward"]) for row in rows)
    judged = {
        json.loads(line)["prompt"] for line in Path("runs/warm/prompts.eval.jsonl").read_text().splitlines()
    }
    assert len(judged) == 2
    assert not judged & {row["prompt"] for row in rows}
    fit(*flags, *OWN)  # a complete run is shown again
    assert done == [*STAGES]
    assert "num_replies" in complaint(capsys, *flags, *OWN, "--num-replies", "3")
    another(flags)


class StoppedError(Exception):
    """As a kill would be, in a test's own process."""


def stop(self) -> None:
    raise StoppedError


def another(flags: list[str]) -> None:
    """A second head, of the same replies and their features."""
    made = ("--rollouts", "runs/warm/rollouts.parquet", "--features", "runs/warm/features/rollouts")
    scores = ("--reward", "function:fit_rewards:per_token", "--gold", "function:fit_rewards:vowels")
    fit(*flags, *made, *scores, "--name", "long", "--eval-prompts", "test.jsonl")
    report = json.loads(Path("runs/long/eval/report.json").read_text())
    plain, steered = report["frontier"]["curves"][0]["points"]
    assert {*plain["scores"]} == {"gold", "proxy"}
    assert (plain["knob"], steered["knob"], steered["num_replies"]) == (0, 1, 3)
    assert not Path("runs/long/rollouts.parquet").exists()


def test_preferences_teach_reward_value_and_advantage(flags):
    fit(*flags, *OWN[:4], "--reward", "preferences:pairs.jsonl", "--advantage.loss", "dpo")
    manifest = load_manifest(Path("heads/warm"))
    parts = manifest.parts
    assert parts.advantage and parts.value and parts.reward
    assert (parts.advantage.loss, parts.reward.loss) == ("dpo", "bradley_terry")
    assert manifest.metrics["train_pairs"] and manifest.metrics["train_rollouts"]


@pytest.mark.parametrize(
    ("reward", "credit", "discount"),
    [
        ("function:fit_rewards:per_token", "tokens", 0.8),
        ("function:fit_rewards:vowels", "windows", 0.75),
        ("judge:http://127.0.0.1:1/v1", "replies", 1.0),
        ("preferences:pairs.jsonl", "preferences", 1.0),
    ],
)
def test_what_tokens_are_credited_by_follows_from_the_reward(flags, reward, credit, discount):
    assert credit_of(reward, 4) == credit
    assert advantage_for(credit, 4).discount == discount
    assert advantage_for(credit, 4).loss == ADVANTAGES[credit].loss


@pytest.mark.parametrize(
    ("args", "says"),
    [
        (("--reward", "function:fit_rewards:nothing"), "nothing"),
        (("--reward", "function:fit_rewards:too_few"), "1 token rewards for"),
        (("--reward", "function:fit_rewards:a_word"), "returned str"),
        (("--reward", "function:fit_rewards:fails"), "no lexicon"),
        (("--reward", "function:fit_rewards:leaves"), "raised SystemExit: 3"),
        (("--reward", "function:fit_rewards:swapped"), "swap its two"),
        (("--reward", "function:./fit_rewards.py:vowels"), "cannot be had"),
        (("--reward", "function:code:vowels"), "code.py) has no vowels"),
        (("--reward", "function:raises:f"), "RuntimeError: not today"),
        (("--reward", "function:leaves:f"), "SystemExit: 1"),
        (("--reward", "preferences:single.jsonl"), "1 pairs of 1 different prompts are too few"),
        (("--reward", "preferences:thumbs.jsonl"), "give it to `trimtab train` as --unpaired"),
        (("--prompts", "long.jsonl"), "1 of 23 prompts leave no room for 6 reply tokens, the first ('aaaa"),
        (("--eval-prompts", "long.jsonl"), "1 of 46 prompts leave no room for 6 reply tokens"),
        (("--reward", "reward:heads/none"), "no head of that name"),
        (("--reward", "model:none"), "none"),
        (("--reward", "preferences:empty.jsonl"), "empty"),
        (("--reward", "judge:http://127.0.0.1:1/v1", "--retries", "0"), "127.0.0.1:1"),
        (("--prompts", "few.jsonl"), "5 different prompts are too few: give 22 or more"),
        (("--prompts", "none.jsonl"), "none.jsonl"),
        (("--prompts", "empty.jsonl"), "empty"),
        (("--eval-prompts", "overlap.jsonl"), "trained on too"),
        (("--eval-prompts", "one.jsonl"), "give 2 or more"),
        (("--head-folder", "fit_rewards.py/x"), "is a file"),
        (("--head-folder", "mine"), "holds something"),
        (("--run-folder", "fit_rewards.py"), "is a file"),
        (("--advantage.loss", "dpo"), "does not learn from the rewards"),
        (("--gold", "function:fit_rewards:nothing"), "nothing"),
    ],
)
def test_bad_input_is_told_before_any_work_in_one_line_that_names_it(flags, capsys, args, says):
    write("few.jsonl", [{"prompt": f"say {i}"} for i in range(5)])
    write("empty.jsonl", [])
    write("one.jsonl", [{"prompt": "tell"}])
    write("single.jsonl", [{"prompt": "ask", "chosen": "aa", "rejected": "zz"}])
    write("thumbs.jsonl", [{"prompt": "ask", "completion": "aa", "label": True}])
    write("long.jsonl", [{"prompt": "a" * 500}, *({"prompt": f"long {i}"} for i in range(22))])
    Path("raises.py").write_text("raise RuntimeError('not today')\n")
    Path("leaves.py").write_text("raise SystemExit(1)\n")
    write("overlap.jsonl", [{"prompt": "say 2"}, {"prompt": "tell"}])
    Path("mine").mkdir()
    Path("mine/notes.txt").write_text("mine")
    assert says in complaint(capsys, *flags, *OWN, *args)
    assert not Path("runs").exists()
    assert not Path("heads").exists()


@pytest.mark.parametrize(
    ("args", "says"),
    [
        (("--reward", "magic"), "preferences:FILE"),
        (("--name", "Big Head"), "name"),
        (("--window", "-1"), "window"),
        (("--strengths", "0"), "strengths"),
        (("--features", "x"), "give both"),
        (("--rollouts", "x.parquet"), "give one of"),
    ],
)
def test_flags_that_cannot_be_are_refused(flags, capsys, args, says):
    assert says in complaint(capsys, *flags, *OWN, *args, code=2)


def test_a_disk_that_is_too_small_is_told_before_sampling(flags, capsys, monkeypatch):
    monkeypatch.setattr("shutil.disk_usage", lambda path: SimpleNamespace(free=10))
    assert "make room" in complaint(capsys, *flags, *OWN)
    assert not Path("runs/warm/rollouts.parquet").exists()


def test_a_judge_rates_a_made_up_reply_before_any_other(flags, capsys):
    with local_judge(lambda question: Say("no number")) as judge:
        told = complaint(capsys, *flags, *OWN[:4], "--reward", f"judge:{judge.url}")
    assert "does not rate a made-up reply" in told
    assert len(judge.asked) == 1


def test_the_fix_that_a_complaint_of_scores_names_is_taken(flags, capsys):
    args = [*flags, *OWN[:4], "--reward", "function:fit_rewards:fails_for_some"]
    assert "--on-bad-scores skip" in complaint(capsys, *args)
    fit(*args, "--on-bad-scores", "skip")
    assert "on_bad_scores" in complaint(capsys, *args), "the replies are scored by now"


def test_a_reward_that_is_the_same_for_all_replies_is_told(flags, capsys):
    told = complaint(capsys, *flags, *OWN[:4], "--reward", "function:fit_rewards:constant")
    assert "gives all 42 replies the reward 1.0, which teaches nothing" in told


def test_pairs_that_have_changed_are_refused(flags, capsys, monkeypatch):
    monkeypatch.setattr(fit_run.Fit, "_train", stop)
    pairs = [*flags, *OWN[:4], "--reward", "preferences:pairs.jsonl", "--advantage.loss", "dpo"]
    with pytest.raises(StoppedError):
        main(["fit", *pairs])
    Path("pairs.jsonl").write_text(Path("pairs.jsonl").read_text().replace("aa1", "bb1"))
    assert "pairs.jsonl has changed since runs/warm was begun with it" in complaint(capsys, *pairs)


def test_an_edited_reward_is_noted(flags, capsys):
    fit(*flags, *OWN)
    assert "note:" not in capsys.readouterr().out
    with Path("fit_rewards.py").open("a") as file:
        file.write("# edited\n")
    fit(*flags, *OWN)
    assert "note: function:fit_rewards:vowels has changed since" in capsys.readouterr().out
