"""`trimtab rollouts` with a tiny random model."""

from __future__ import annotations

import dataclasses
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
import torch
from local_judge import Say, local_judge
from stopped_runs import stopped
from tiny_models import EOS, SIZES, byte_tokenizer, save_random_head, save_random_model
from transformers import LlamaConfig

from trimtab.guidance.data.items import load_items
from trimtab.guidance.data.load import load_preferences, load_rankings, load_rollouts, load_rows
from trimtab.guidance.data.options import RowLimits
from trimtab.guidance.features.store import StoredFeatures, open_features
from trimtab.guidance.policy import load_policy
from trimtab.guidance.text.prompt_form import recorded_form
from trimtab.server.cli import main
from trimtab.server.commands.rollouts import sampling as rollouts_sampling
from trimtab.server.rollouts.sample import sample_rollouts

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

def length_from_answer(prompts, completions, answer, **columns):
    return [abs(len(text) - a) for text, a in zip(completions, answer)]

def for_even_answers(completions, answer):
    return [None if a % 2 else float(a) for a in answer]

def for_none(completions):
    return [None] * len(completions)

def counted(prompt, reply):
    with open("scored.txt", "a") as file:
        file.write(".")
    return float(len(reply))

async def later(prompts, completions):
    return [0.0] * len(completions)
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


def test_steering_is_measured_in_kl_and_said_in_every_row(flags, capsys):
    run(*flags, "--steer", "mute=0.5", "--strength", "2", "--temperature", "0.75", "--top-p", "0.875")
    assert all(row["strength"] == 2 and row["kl"] > 0 for row in read())
    assert {(row["temperature"], row["top_p"]) for row in read()} == {(0.75, 0.875)}
    assert "no plain samples (strength 2)" in capsys.readouterr().out
    assert {row.departure for row in load_rollouts(Path("out.parquet")).rows} == {"strength 2"}
    run(*flags, "--out", "sharp.parquet", "--temperature", "0.75")
    assert {row.departure for row in load_rollouts(Path("sharp.parquet")).rows} == {"temperature 0.75"}


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
    monkeypatch.setattr(
        rollouts_sampling, "sample_rollouts", lambda *args: sampled.append(args) or sample_rollouts(*args)
    )
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
    monkeypatch.setattr(
        "trimtab.server.commands.rollouts.sampling.sample_rollouts", None
    )  # nothing is left to sample
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
        u.label == (rewards[u.completion] >= 2)
        for u in load_rows("unpaired", Path("out.unpaired.parquet")).rows
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
        (["--score", "rewards:kind"], "reward:NAME_OR_FOLDER"),
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


def write_answers() -> None:
    rows = [{"prompt": f"say {i}", "answer": i, "topic": {"of": ["x", str(i)]}} for i in range(5)]
    Path("prompts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def test_columns_that_the_reward_reads_are_no_extra_and_stay_for_rescoring(flags, policy, capsys):
    write_answers()
    run(*flags, "--score", "function:my_rewards:length_from_answer")
    for row in read():
        assert row["columns"] == {"answer": row["prompt_id"], "topic": {"of": ["x", str(row["prompt_id"])]}}
        assert row["reward"] == abs(len(row["completion"]) - row["prompt_id"])
    assert len(load_rollouts(Path("out.parquet")).rows) == 15
    again = ("--model", str(policy), "--rescore", "out.parquet", "--out", "again.parquet", "--score")
    run(*again, "function:my_rewards:for_even_answers")
    assert "for_even_answers left 6 of 15 replies without a reward" in capsys.readouterr().out
    assert {(row["prompt_id"], row["reward"]) for row in read("again.parquet")} == {
        *((0, 0.0), (2, 2.0), (4, 4.0), (1, None), (3, None))
    }
    plain = ("--format", "trl", "--score", "function:my_rewards:for_even_answers", "--out", "b.parquet")
    assert "no column topic" in complaint(capsys, *flags, *plain)


def test_columns_are_kept_for_later_where_that_is_asked(flags, policy, capsys):
    write_answers()
    run(*flags, "--extra-columns", "ignore")
    again = ("--model", str(policy), "--rescore", "out.parquet", "--score")
    told = complaint(capsys, *again, "function:my_rewards:for_even_answers")
    assert "for_even_answers reads the column answer, which is not there" in told
    assert "columns" not in read()[0]
    run(*flags, "--keep-columns", "--out", "kept.parquet")
    assert read("kept.parquet")[3]["columns"]["topic"] == {"of": ["x", "1"]}
    run(*again[:3], "kept.parquet", "--score", "function:my_rewards:for_even_answers", "--pairs", "none")


@pytest.mark.parametrize(
    ("function", "says"),
    [
        ("for_even_answers", "reads the column answer, which is not there"),
        ("for_none", "the scorer left 15 of 15 replies without a reward"),
        ("later", "later is asynchronous"),
    ],
)
def test_a_batch_function_that_cannot_reward_is_told_in_one_line(flags, capsys, function, says):
    assert says in complaint(capsys, *flags, "--score", f"function:my_rewards:{function}")
    assert not Path("out.parquet").exists()


def test_a_column_of_several_types_is_named(flags, capsys):
    rows = [{"prompt": "a", "answer": 1}, {"prompt": "b", "answer": "one"}]
    Path("prompts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert "answer" in complaint(capsys, *flags, "--keep-columns")


def test_a_reward_is_named_by_its_folder_too(flags, policy):
    run(*flags, "--score", "reward:kind")
    without = [flag for flag in flags if flag != str(policy / "heads/kind")]
    run(*without, "--score", f"reward:{policy / 'heads/kind'}", "--out", "b.parquet")
    assert [row["reward"] for row in read("b.parquet")] == [row["reward"] for row in read()]


def features_of(path: str, policy: Path) -> tuple[list[torch.Tensor], StoredFeatures]:
    loaded = load_policy(policy, device="cpu")
    replies = [item.reply for item in load_items("rollouts", Path(path), RowLimits(), loaded)]
    return replies, open_features(Path("kept"), loaded)


@pytest.mark.parametrize(
    ("prompt", "score"),
    [
        ("chat", ("--score", "reward:kind")),
        pytest.param("text", (), marks=pytest.mark.slow),
        pytest.param("chat", (), marks=pytest.mark.slow),
        pytest.param("text", ("--score", "reward:kind"), marks=pytest.mark.slow),
    ],
)
def test_features_kept_while_sampling_are_those_that_a_second_pass_would_write(flags, policy, score, prompt):
    """Two prompts are alike, so that a reply may come twice; some end by themselves, some by their length."""
    texts = [f"say {i % 4}" for i in range(5)]
    write_prompts(texts if prompt == "text" else [[{"role": "user", "content": text}] for text in texts])
    steer = ("--steer", "mute=1", "--max-num-seqs", "4")
    run(*flags, *score, *steer, "--keep-features", "kept", "--temperature", "2", "--max-tokens", "100")
    run(*flags, *score, *steer, "--out", "b.parquet", "--temperature", "2", "--max-tokens", "100")
    assert [row["token_ids"] for row in read()] == [row["token_ids"] for row in read("b.parquet")]
    assert {row["is_cut"] for row in read()} == {True, False}
    command = ["features", "--model", str(policy), "--rollouts", "out.parquet", "--no-show-progress", "--out"]
    assert main([*command, "anew"]) == 0
    replies, kept = features_of("out.parquet", policy)
    anew = open_features(Path("anew"), kept.policy)
    for mine, theirs in zip(kept.get(replies), anew.get(replies), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-4)
    without = dataclasses.replace(anew.manifest)
    assert kept.manifest == without
    assert main([*command, "kept", "--resume"]) == 0
    train = [
        "train",
        "--name",
        "v",
        "--model",
        str(policy),
        "--rollouts",
        "b.parquet",
        "--reward-from",
        "columns",
    ]
    assert main([*train, "--features", "kept", "--run-folder", "r", "--head-folder", "h"]) == 1


def test_an_end_that_the_generation_config_alone_names_ends_what_is_kept(flags, policy, tmp_path):
    """Such a reply has no further end: none was computed."""
    folder = shutil.copytree(policy, tmp_path / "policy")
    ends = [*range(97, 123), load_policy(policy).tokenizer.eos_token_id]
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": ends}))
    flags = [str(folder) if flag == str(policy) else flag for flag in flags]
    run(*flags, "--keep-features", "kept", "--temperature", "2", "--max-tokens", "60")
    assert {row["token_ids"][-1] in range(97, 123) for row in read()} >= {True}
    replies, kept = features_of("out.parquet", folder)
    command = ["features", "--model", str(folder), "--rollouts", "out.parquet", "--no-show-progress"]
    assert main([*command, "--out", "anew"]) == 0
    anew = open_features(Path("anew"), kept.policy)
    for mine, theirs in zip(kept.get(replies), anew.get(replies), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-4)


@pytest.mark.slow
def test_a_run_killed_at_any_moment_keeps_its_features_too(flags, policy):
    write_prompts([f"say {i}" for i in range(12)])
    run(*flags, "--keep-features", "whole", "--out", "whole.parquet")
    for at, count in ((KEEP, 2), (STORE, 1)):
        stopped(at, count, ["rollouts", *flags, "--keep-features", "kept"])
        assert not Path("out.parquet").exists()
    assert len(list(Path("out.partial").glob("part-*.parquet"))) == 6
    run(*flags, "--keep-features", "kept")
    assert Path("out.parquet").read_bytes() == Path("whole.parquet").read_bytes()
    names = sorted(path.name for path in Path("whole").iterdir())
    assert sorted(path.name for path in Path("kept").iterdir()) == names
    assert all(Path("kept", name).read_bytes() == Path("whole", name).read_bytes() for name in names)
    assert not Path("out.partial").exists()


PART = "trimtab.server.commands.rollouts.partial:write_parquet"
KEEP = "trimtab.server.commands.rollouts.features:FeatureKeeper.keep"
STORE = "trimtab.guidance.features.store:_keep"


@pytest.mark.slow
def test_a_small_run_is_kept_in_parts_by_itself(flags, monkeypatch):
    """Without --prompts-per-part: 64 prompts of 36 tokens were one part."""
    write_prompts([f"say {i}" for i in range(64)])
    at = flags.index("--prompts-per-part")
    flags = flags[:at] + flags[at + 2 :]
    run(*flags, "--out", "whole.parquet")
    stopped(PART, 3, ["rollouts", *flags])
    assert len(list(Path("out.partial").glob("part-*.parquet"))) == 3
    sampled = []
    monkeypatch.setattr(
        rollouts_sampling, "sample_rollouts", lambda *args: sampled.append(args[1]) or sample_rollouts(*args)
    )
    run(*flags)
    assert sum(map(len, sampled)) <= 64 - 3 * 6
    assert Path("out.parquet").read_bytes() == Path("whole.parquet").read_bytes()


@pytest.mark.slow
def test_scores_are_kept_as_they_come_and_made_anew_where_the_function_changes(flags):
    """Killed at the 100th reply: the first 64 are kept."""
    write_prompts([f"say {i}" for i in range(50)])
    scored = ("--score", "function:my_rewards:counted")
    run(*flags, *scored, "--out", "whole.parquet")
    stopped("trimtab.server.scoring.functions:FunctionScorer._score", 99, ["rollouts", *flags, *scored])
    kept = Path("out.scores.jsonl")
    with kept.open("a") as file:
        file.write("[64, [[1.0, nu")  # as a kill in the midst of a line leaves it
    half_done = kept.read_text()
    Path("scored.txt").unlink()
    run(*flags, *scored)
    assert len(Path("scored.txt").read_text()) == 150 - 64
    assert Path("out.parquet").read_bytes() == Path("whole.parquet").read_bytes()
    assert not kept.exists()

    Path("out.parquet").rename("b.parquet")
    Path("b.scores.jsonl").write_text(half_done)  # of other rows: those of b.parquet have rewards
    Path("scored.txt").unlink()
    run("--rescore", "b.parquet", *scored)
    assert len(Path("scored.txt").read_text()) == 150


@pytest.mark.slow
def test_a_run_that_is_interrupted_says_what_is_kept_and_how_to_go_on(flags):
    write_prompts([f"say {i}" for i in range(200)])
    told = stopped(PART, 2, ["rollouts", *flags], signal.SIGINT)
    assert "stopped; 2 parts of the replies are kept in out.partial: give the same command again" in told
    assert "Traceback" not in told


def test_a_prompt_that_leaves_no_room_for_the_end_is_told_before_anything_is_sampled(flags, policy, capsys):
    """128 positions: 116 tokens of prompt and 12 of reply; kept features read one more behind a cut reply."""
    write_prompts(["say 0", "x" * 116])
    flags = [flag for flag in flags if flag != "--heads" and not flag.startswith(str(policy / "heads"))]
    flags += ["--rows", "text"]
    run(*flags, "--out", "whole.parquet")
    told = complaint(capsys, *flags, "--keep-features", "kept")
    assert "1 of 2 prompts cannot be replied to, first prompt 1" in told
    assert not Path("out.partial").exists()


def test_features_of_another_folder_are_not_mixed_with(flags, capsys):
    Path("kept").mkdir()
    Path("kept/mine.txt").write_text("mine")
    assert "kept exists" in complaint(capsys, *flags, "--keep-features", "kept")
    assert not Path("out.partial").exists()


def test_a_file_that_is_there_is_not_written_over(flags, capsys):
    Path("out.parquet").write_text("mine")
    assert "--rescore" in complaint(capsys, *flags)
    assert Path("out.parquet").read_text() == "mine"


def test_a_full_disk_leaves_what_is_whole(flags, capsys, monkeypatch):
    real, written = pq.write_table, []

    def full_after_two(table, path, **options):
        if len(written) == 2:
            Path(path).write_bytes(b"half")
            raise OSError(28, "No space left on device")
        written.append(path)
        real(table, path, **options)

    with monkeypatch.context() as patched:
        patched.setattr(pq, "write_table", full_after_two)
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
