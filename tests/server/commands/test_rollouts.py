"""`trimtab rollouts` with a tiny random model."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from local_judge import Say, local_judge
from tiny_models import EOS, SIZES, byte_tokenizer, save_random_head, save_random_model
from transformers import LlamaConfig

from trimtab.guidance import parquet
from trimtab.guidance.data import load_preferences, load_rankings, load_rollouts, load_unpaired
from trimtab.guidance.prompt_form import recorded_form
from trimtab.server.cli import main
from trimtab.server.commands import rollouts_sampling
from trimtab.server.scoring.sample import sample

REWARDS = """
import math

def vowels(prompt, reply):
    return sum(c in "aeiou" for c in reply)

def nan_for_some(prompt, reply):
    return math.nan if prompt == "say 1" else 1.0

def fails(prompt, reply):
    raise RuntimeError("no lexicon")

def per_token(prompt, reply, tokens):
    assert "".join(tokens) == reply, (tokens, reply)
    return [float(len(text)) for text in tokens]

def too_short(prompt, reply, tokens):
    return [0.0] * (len(tokens) - 1)
"""


@pytest.fixture(scope="module")
def policy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = save_random_model(LlamaConfig(**SIZES), tmp_path_factory.mktemp("policies") / "tiny")
    tokenizer = byte_tokenizer()
    tokenizer.chat_template = "{% for m in messages %}{{ m['content'] }}\n{% endfor %}>"
    tokenizer.save_pretrained(folder)
    save_random_head(folder / "heads", folder, "kind", seed=1)
    save_random_head(folder / "heads", folder, "mute", seed=2, parts="a")
    return folder


@pytest.fixture
def flags(policy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delitem(sys.modules, "my_rewards", raising=False)
    Path("my_rewards.py").write_text(REWARDS)
    write_prompts([f"say {i}" for i in range(5)])
    heads = [str(policy / "heads" / name) for name in ("kind", "mute")]
    return [
        *("--model", str(policy), "--heads", *heads, "--prompts", "prompts.jsonl", "--out", "out.parquet"),
        *("--max-tokens", "12", "--num-replies", "3", "--prompts-per-part", "2", "--seed", "3"),
    ]


def write_prompts(prompts: list[object], **extra: object) -> None:
    lines = [json.dumps({"prompt": prompt, **extra}) + "\n" for prompt in prompts]
    Path("prompts.jsonl").write_text("".join(lines))


def run(*args: str) -> None:
    assert main(["rollouts", *args]) == 0


def complaint(capsys: pytest.CaptureFixture[str], *args: str, code: int = 1) -> str:
    capsys.readouterr()
    assert main(["rollouts", *args]) == code
    return capsys.readouterr().err.splitlines()[-1]


def read(path: str = "out.parquet") -> list[dict]:
    return pq.read_table(path).to_pylist()


def test_rows_say_all_that_was_drawn(flags):
    run(*flags)
    rows = read()
    assert [(r["prompt"], r["prompt_id"], r["sample"]) for r in rows] == [
        (f"say {i}", i, j) for i in range(5) for j in range(3)
    ]
    tokenizer = byte_tokenizer()
    for row in rows:
        assert row["is_cut"] == (row["token_ids"][-1] != EOS)
        assert len(row["token_ids"]) <= 12
        ids = row["token_ids"] if row["is_cut"] else row["token_ids"][:-1]
        decoded = tokenizer.decode(ids, skip_special_tokens=True)
        assert decoded.startswith(row["completion"])  # but for half a character at the end
        assert (row["kl"], row["strength"], row["seed"]) == (0.0, 0.0, (3 << 32) + row["prompt_id"])
        assert (row["reward"], row["token_rewards"]) == (None, None)
    assert len({tuple(r["token_ids"]) for r in rows}) == len(rows)
    assert not Path("out.partial").exists()
    assert load_rollouts(Path("out.parquet")).rows[4].sampled.token_ids == tuple(rows[4]["token_ids"])


def test_a_prompt_s_replies_do_not_depend_on_what_is_sampled_beside_them(flags):
    run(*flags)
    run(*flags, "--out", "few.parquet", "--num-prompts", "2", "--num-replies", "2", "--prompts-per-part", "1")
    ids = {(r["prompt_id"], r["sample"]): r["token_ids"] for r in read()}
    assert all(row["token_ids"] == ids[row["prompt_id"], row["sample"]] for row in read("few.parquet"))


def test_steering_is_measured_in_kl(flags):
    run(*flags, "--steer", "mute=0.5", "--strength", "2")
    assert all(row["strength"] == 2 and row["kl"] > 0 for row in read())


def test_messages_go_through_the_template(flags):
    write_prompts([[{"role": "user", "content": "hi"}]])
    run(*flags)
    assert read()[0]["prompt"] == [{"role": "user", "content": "hi"}]


def test_a_killed_run_goes_on_to_the_same_file(flags, monkeypatch):
    """Killed without warning as soon as its first part is there, then given the same command again."""
    write_prompts([f"say {i}" for i in range(40)])
    run(*flags, "--score", "function:my_rewards:vowels", "--out", "whole.parquet")
    command = [sys.executable, "-m", "trimtab.server.cli", "rollouts", *flags]
    command += ["--score", "function:my_rewards:vowels"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=environment)
    deadline = time.monotonic() + 100
    while not Path("out.partial/part-00000.parquet").exists():
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.001)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not Path("out.parquet").exists()
    num_kept = len(list(Path("out.partial").glob("part-*")))
    assert 0 < num_kept < 20
    sampled = []
    monkeypatch.setattr(rollouts_sampling, "sample", lambda *args: sampled.append(args) or sample(*args))
    run(*flags, "--score", "function:my_rewards:vowels")
    assert len(sampled) == 20 - num_kept
    assert Path("out.parquet").read_bytes() == Path("whole.parquet").read_bytes()


def test_parts_of_another_run_are_refused_by_what_differs(flags, capsys):
    complaint(capsys, *flags, "--score", "function:my_rewards:fails")
    told = complaint(capsys, *flags, "--score", "function:my_rewards:vowels", "--temperature", "0.5")
    assert "temperature was 1.0, is 0.5" in told
    assert "seed" not in told
    write_prompts(["others"] * 5)
    assert "prompts was" in complaint(capsys, *flags, "--score", "function:my_rewards:vowels")


def test_a_failing_scorer_loses_no_reply_and_a_rerun_only_scores(flags, capsys, monkeypatch):
    told = complaint(capsys, *flags, "--score", "function:my_rewards:nan_for_some")
    assert "3 of 15 replies have no score, first prompt 1 sample 0: the reward is nan" in told
    assert "out.partial" in told
    assert not Path("out.parquet").exists()
    monkeypatch.setattr("trimtab.server.commands.rollouts_sampling.sample", None)  # nothing is left to sample
    run(*flags, "--score", "function:my_rewards:nan_for_some", "--on-bad-scores", "skip")
    assert "skipped: 3 of 15" in capsys.readouterr().out
    assert [row["prompt_id"] for row in read() if row["reward"] is None] == [1, 1, 1]
    assert {row["reward"] for row in read()} == {1.0, None}


@pytest.mark.parametrize(
    ("function", "problem"), [("fails", "RuntimeError: no lexicon"), ("too_short", "tokens")]
)
def test_a_scorer_that_scores_nothing_is_refused_even_when_skipping(flags, capsys, function, problem):
    told = complaint(capsys, *flags, "--score", f"function:my_rewards:{function}", "--on-bad-scores", "skip")
    assert "15 of 15" in told
    assert problem in told


def test_token_rewards_stand_beside_their_tokens(flags):
    run(*flags, "--score", "function:my_rewards:per_token")
    for row in read():
        assert len(row["token_rewards"]) == len(row["token_ids"])
        assert row["reward"] == sum(row["token_rewards"]) == len(row["completion"])


def test_a_reward_part_gives_the_same_raw_reward_while_sampling_and_afterwards(flags, policy):
    run(*flags, "--score", "reward:kind")
    measured = [row["reward"] for row in read()]
    heads = ("--heads", str(policy / "heads/kind"))
    run(
        "--model",
        str(policy),
        *heads,
        "--rescore",
        "out.parquet",
        "--score",
        "reward:kind",
        "--out",
        "b.parquet",
    )
    assert [row["reward"] for row in read("b.parquet")] == pytest.approx(measured, abs=1e-4)
    assert len(set(measured)) > 10
    metadata = json.loads(pq.read_schema("b.parquet").metadata[b"trimtab"])
    assert metadata["score"] == "reward:kind"
    assert "raw" in metadata["units"]


@pytest.mark.parametrize(("rows", "form"), [("auto", "chat"), ("text", "text")])
def test_files_say_as_what_strings_were_read_and_keep_saying_it(flags, policy, capsys, rows, form):
    run(*flags, "--rows", rows)
    assert ("5 prompts are strings and became one user" in capsys.readouterr().out) == (form == "chat")
    assert {row["prompt"] for row in read()} == {f"say {i}" for i in range(5)}
    again = ("--model", str(policy), "--rescore", "out.parquet", "--score", "function:my_rewards:vowels")
    run(*again, "--pairs", "best-worst", "--out", "b.parquet")
    for name in ("out.parquet", "b.parquet", "b.preference.parquet"):
        assert recorded_form(Path(name)) == form


def test_strings_are_sampled_from_as_the_messages_that_they_become(flags):
    run(*flags)
    strings = [row["token_ids"] for row in read()]
    write_prompts([[{"role": "user", "content": f"say {i}"}] for i in range(5)])
    run(*flags, "--out", "b.parquet")
    assert [row["token_ids"] for row in read("b.parquet")] == strings
    write_prompts([f"say {i}" for i in range(5)])
    run(*flags, "--out", "c.parquet", "--rows", "text")
    assert [row["token_ids"] for row in read("c.parquet")] != strings


@pytest.mark.parametrize("rows", ["text", "chat"])
def test_a_reward_part_reads_cut_replies_after_the_end_of_their_rows(flags, policy, tmp_path_factory, rows):
    """A chat's turn ends with <spare> here, and a text with <eos>."""
    folder = tmp_path_factory.mktemp("closed") / "tiny"
    shutil.copytree(policy, folder)
    tokenizer = byte_tokenizer()
    tokenizer.chat_template = "{% for m in messages %}{{ m.content }}<spare>{% endfor %}>"
    tokenizer.save_pretrained(folder)
    run(*flags, "--model", str(folder), "--rows", rows, "--score", "reward:kind")
    heads = ("--heads", str(policy / "heads/kind"), "--score", "reward:kind", "--out", "b.parquet")
    run("--model", str(folder), "--rescore", "out.parquet", *heads)
    assert any(row["is_cut"] for row in read())
    measured = [row["reward"] for row in read()]
    assert [row["reward"] for row in read("b.parquet")] == pytest.approx(measured, abs=1e-4)


def test_keys_of_messages_stand_in_the_file_and_are_read_from_it(flags, policy, tmp_path_factory):
    folder = tmp_path_factory.mktemp("tools") / "tiny"
    shutil.copytree(policy, folder)
    tokenizer = byte_tokenizer()
    tokenizer.chat_template = "{% for m in messages %}{{ m.name or '' }}{{ m.content }}\n{% endfor %}>"
    tokenizer.save_pretrained(folder)
    asked = [{"role": "user", "content": "a", "name": "Al"}, {"role": "user", "content": "b"}]
    write_prompts([asked, [{"role": "user", "content": "c"}]])
    run(*flags, "--model", str(folder), "--score", "function:my_rewards:vowels", "--pairs", "all")
    for load, name in ((load_rollouts, "out.parquet"), (load_preferences, "out.preference.parquet")):
        prompts = {row.prompt for row in load(Path(name)).rows}
        assert asked in [[message.to_dict() for message in prompt] for prompt in prompts]


def test_training_rows_are_read_by_the_trainer(flags, policy):
    run(*flags)
    options = ("--pairs", "best-worst", "--rankings", "--labels", "2")
    run("--model", str(policy), "--rescore", "out.parquet", "--score", "function:my_rewards:vowels", *options)
    rewards = {row["completion"]: row["reward"] for row in read()}
    pairs = load_preferences(Path("out.preference.parquet")).rows
    assert all(p.margin == rewards[p.chosen] - rewards[p.rejected] > 0 for p in pairs)
    assert all(p.chosen_sampled is not None and p.rejected_sampled is not None for p in pairs)
    for ranking in load_rankings(Path("out.ranking.parquet")).rows:
        best = ranking.responses[ranking.ranks.index(1.0)]
        assert rewards[best] == max(rewards[text] for text in ranking.responses)
    assert all(
        u.label == (rewards[u.completion] >= 2) for u in load_unpaired(Path("out.unpaired.parquet")).rows
    )


def test_a_judge_rates_and_its_answers_are_asked_for_once(flags, policy):
    with local_judge(lambda text: Say("7" if "say 1" in text else "3")) as judge:
        run(*flags, "--score", f"judge:{judge.url}")
        assert {(row["prompt"] == "say 1", row["reward"]) for row in read()} == {(True, 7.0), (False, 3.0)}
        num_asked = len(judge.asked)
        again = ("--rescore", "out.parquet", "--score", f"judge:{judge.url}")
        run("--model", str(policy), *again)
        assert len(judge.asked) == num_asked


def test_the_judge_is_asked_by_the_user_s_rubric(flags):
    Path("rubric.txt").write_text("Rate the rhymes.\n")
    with local_judge(lambda text: Say("4")) as judge:
        run(*flags, "--score", f"judge:{judge.url}", "--rubric", "rubric.txt")
    assert all(body["messages"][0]["content"].startswith("Rate the rhymes.\n\n") for body in judge.asked)


def test_a_judge_s_garbage_is_counted(flags, capsys):
    with local_judge(lambda text: Say("I like it" if "say 1" in text else "3 / 10")) as judge:
        told = complaint(capsys, *flags, "--score", f"judge:{judge.url}", "--max-failures", "1")
    assert "3 of 15" in told
    assert "want a number from 1 to 10, got 'I like it'" in told


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        (["--score", "rewards:kind"], "reward:HEAD"),
        (["--score", "reward:mute"], "with one: kind"),
        (["--score", "function:my_rewards:none"], "module:function"),
        (["--score", "judge:127.0.0.1"], "http://"),
        (["--score", "judge:http://127.0.0.1:1/v1", "--api-key-env", "NO_SUCH_KEY"], "NO_SUCH_KEY"),
        (["--score", "judge:http://127.0.0.1:1/v1", "--rubric", "none.txt"], "none.txt"),
        (["--steer", "other=1"], "heads.other"),
        (["--num-replies", "129"], "n: must be 1…128"),
        (["--prompts", "none.jsonl"], "none.jsonl"),
        (["--model", "no/such"], "no/such"),
    ],
)
def test_wrong_input_is_told_in_one_line_and_leaves_no_file(flags, capsys, wrong, says):
    assert says in complaint(capsys, *flags, *wrong)
    assert not Path("out.parquet").exists()


@pytest.mark.parametrize(
    "wrong",
    [
        ["--prompts", "p.jsonl", "--rescore", "r.parquet"],
        [],
        ["--rescore", "r.parquet"],
        ["--prompts", "p.jsonl", "--pairs", "all"],
        ["--prompts", "p.jsonl", "--strength", "1"],
        ["--prompts", "p.jsonl", "--seed", "-1"],
        ["--prompts", "p.jsonl", "--min-margin", "1"],
        ["--prompts", "p.jsonl", "--score", "reward:kind", "--rubric", "r.txt"],
        ["--rescore", "r.parquet", "--pairs", "all", "--num-replies", "2"],
        ["--prompts", "p.jsonl", "--out", "out.jsonl"],
    ],
)
def test_flags_that_describe_no_run_exit_with_2(wrong, capsys):
    assert "--help" in complaint(capsys, *wrong, code=2)


def test_prompts_over_the_context_are_counted(flags, capsys):
    write_prompts(["say 0", "x" * 200, "y" * 125])
    told = complaint(capsys, *flags)
    assert "2 of 3 prompts cannot be replied to, first prompt 1" in told
    assert not Path("out.partial").exists()
    run(*flags, "--on-bad-rows", "skip")
    assert "2 of 3 prompts were skipped" in capsys.readouterr().out
    assert {row["prompt_id"] for row in read()} == {0}


def test_extra_columns_are_refused_by_name(flags, capsys):
    write_prompts(["a"], topic="x")
    assert "topic" in complaint(capsys, *flags)
    run(*flags, "--extra-columns", "ignore")


def test_a_file_that_is_there_is_not_written_over(flags, capsys):
    Path("out.parquet").write_text("mine")
    assert "--rescore" in complaint(capsys, *flags)
    assert Path("out.parquet").read_text() == "mine"


def test_a_full_disk_leaves_what_is_whole(flags, capsys, monkeypatch):
    real, written = parquet.pq.write_table, []

    def full_after_two(table, path, **options):
        if len(written) == 2:
            Path(path).write_bytes(b"half")
            raise OSError(28, "No space left on device")
        written.append(path)
        real(table, path, **options)

    with monkeypatch.context() as patched:
        patched.setattr(parquet.pq, "write_table", full_after_two)
        assert "No space left" in complaint(capsys, *flags)
    assert sorted(path.name for path in Path("out.partial").iterdir()) == [
        "part-00000.parquet",
        "part-00001.parquet",
        "run.json",
    ]
    run(*flags)
    assert len(read()) == 15


@pytest.mark.parametrize("content", [b"", b"PAR1 no"])
def test_a_file_that_is_no_rollouts_is_told(tmp_path, capsys, content):
    path = tmp_path / "x.parquet"
    path.write_bytes(content)
    assert str(path) in complaint(capsys, "--rescore", str(path), "--pairs", "all")
