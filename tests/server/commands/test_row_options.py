"""`--format`, `--columns` and files of every kind, in every command that reads rows."""

from __future__ import annotations

import csv
import gzip
import json
import re
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from local_judge import Say, local_judge
from tiny_models import SIZES, save_random_head, save_random_model
from transformers import LlamaConfig

from trimtab.guidance.data.load import load_preferences
from trimtab.guidance.policy import load_policy
from trimtab.guidance.training.lora.config import LoraConfig
from trimtab.guidance.training.lora.train import preference_rows
from trimtab.server.cli import main

COLUMNS = "prompt=question,chosen=good,rejected=bad"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("rows")
    policy = save_random_model(LlamaConfig(**SIZES), folder / "tiny")
    save_random_head(folder / "heads", policy, "judge", parts="ar")
    with (folder / "pairs.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["question", "good", "bad", "level"])
        writer.writerows([f"say {i}", f"aaa{i % 7}", f"zzz{i % 5}", i] for i in range(40))
    replies = {
        "instruction": "say 1",
        "completions": [{"response": "a" * n, "overall_score": n} for n in (1, 2, 3)],
    }
    (folder / "replies.json").write_text(json.dumps({"train": [replies]}))
    prompts = "".join(json.dumps({"instruction": f"say {i}", "output": "x"}) + "\n" for i in range(4))
    (folder / "prompts.jsonl.gz").write_bytes(gzip.compress(prompts.encode()))
    return folder


REPLY = re.compile(r"\[Reply ([AB])\]\n(.*?)\n\[End", re.DOTALL)


def by_length(text: str) -> Say:
    replies = dict(REPLY.findall(text))
    return Say("A" if len(replies["A"]) > len(replies["B"]) else "B")


def told(capsys: pytest.CaptureFixture[str]) -> str:
    """Standard error in one line, whatever the width of the terminal."""
    return " ".join(capsys.readouterr().err.split())


def test_train_reads_a_mapped_table(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
):
    flags = [
        *("train", "--name", "vowel", "--model", str(folder / "tiny"), "--parts", "reward"),
        *("--preferences", str(folder / "pairs.csv"), "--head-folder", str(tmp_path / "head")),
        *("--run-folder", str(tmp_path / "run"), "--no-show-progress"),
    ]
    assert main(flags) == 1
    assert f"give --columns {COLUMNS}" in told(capsys)
    assert main([*flags, "--columns", f"preferences:{COLUMNS.replace(',', ',preferences:')}"]) == 0
    assert "pairs.csv: 40 preferences (trl rows); not read: level" in caplog.text
    assert (
        f"columns: preferences:{COLUMNS.split(',', maxsplit=1)[0]}"
        in (tmp_path / "run/train_config.yaml").read_text()
    )
    assert main([*flags, "--columns", "prompt=question,chosen=good,rejected=bda"]) == 1
    assert "no column bda, there are question, good, bad, level" in told(capsys)
    assert main([*flags, "--format", "sharegtp"]) == 2


def test_features_reads_a_mapped_table(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
):
    flags = [
        *("features", "--model", str(folder / "tiny"), "--preferences", str(folder / "pairs.c*v")),
        *("--positions", "last", "--out", str(tmp_path / "features"), "--kv-cache-gib", "0.05"),
    ]
    assert main([*flags, "--columns", COLUMNS, "--no-show-progress"]) == 0
    assert "40 preferences" in caplog.text
    assert main([*flags, "--preferences", str(folder / "none.jsonl"), "--overwrite"]) == 1
    assert "none.jsonl: no such file" in told(capsys)


def test_rollouts_samples_to_published_prompts(
    folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
):
    flags = [
        *("rollouts", "--model", str(folder / "tiny"), "--prompts", str(folder / "prompts.jsonl.gz")),
        *("--max-tokens", "3", "--kv-cache-gib", "0.05"),
    ]
    assert main([*flags, "--out", str(tmp_path / "out.parquet")]) == 0
    assert "4 prompts (alpaca rows)" in caplog.text
    assert pq.read_table(tmp_path / "out.parquet")["prompt"].to_pylist() == [f"say {i}" for i in range(4)]
    mapped = [*flags, "--out", str(tmp_path / "mapped.parquet"), "--columns", "prompt=output"]
    assert main(mapped) == 0
    assert set(pq.read_table(tmp_path / "mapped.parquet")["prompt"].to_pylist()) == {"x"}


def test_eval_judges_on_mapped_pairs(folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture):
    flags = [
        *("eval", "--model", str(folder / "tiny"), "--heads", str(folder / "heads/judge")),
        *("--preferences", str(folder / "pairs.csv"), "--out", str(tmp_path / "eval")),
    ]
    assert main([*flags, "--columns", COLUMNS]) == 0
    assert "40 preferences" in caplog.text


def test_label_compares_published_replies(folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture):
    (tmp_path / "constitution.yaml").write_text("name: x\nprinciples:\n  - text: Say more.\n")
    flags = [
        *("label", "--constitution", str(tmp_path / "constitution.yaml"), "--format", "replies"),
        *("--rankings", str(folder / "replies.json"), "--out", str(tmp_path / "out.parquet")),
    ]
    with local_judge(by_length) as judge:
        assert main([*flags, "--judge-url", judge.url]) == 0
    assert "1 rankings (replies rows)" in caplog.text


def test_lora_reads_a_mapped_table(folder: Path, tmp_path: Path):
    config = LoraConfig(
        model=folder / "tiny", out=tmp_path, preferences=folder / "pairs.csv", columns=COLUMNS
    )
    assert len(preference_rows(config, load_policy(folder / "tiny", device="cpu"))) == 40


def test_transcripts_stay_text_on_a_policy_without_a_chat_template(folder: Path, tmp_path: Path):
    talk = "\n\nHuman: say {0}\n\nAssistant:"
    rows = [{"chosen": f"{talk.format(i)} aa", "rejected": f"{talk.format(i)} ab"} for i in range(3)]
    path = tmp_path / "hh.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    policy = load_policy(folder / "tiny", device="cpu")
    assert not policy.tokenizer.chat_template
    config = LoraConfig(model=folder / "tiny", out=tmp_path, preferences=path)
    first = preference_rows(config, policy)[0]
    assert policy.tokenizer.decode(first["prompt_ids"]).endswith("Assistant:")
    assert [message.role for message in load_preferences(path).rows[0].prompt] == ["user"]


@pytest.mark.parametrize("label", [True, False])
def test_labels_of_one_side_train_nothing_that_needs_both(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], label: bool
):
    rows = [{"prompt": f"say {i}", "completion": f"aa{i}", "label": label} for i in range(12)]
    path = tmp_path / "thumbs.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    flags = [
        *("train", "--name", "x", "--model", str(folder / "tiny"), "--unpaired", str(path)),
        *("--parts", "reward", "--reward.loss", "good_bad", "--no-show-progress"),
        *("--head-folder", str(tmp_path / "head"), "--run-folder", str(tmp_path / "run")),
    ]
    assert main(flags) == 1
    said = str(label).lower()
    assert f"all labels that are trained on are {said}: good_bad learns from both" in told(capsys)
