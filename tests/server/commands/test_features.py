"""`trimtab features`: what it says, what it writes, and what it refuses."""

from __future__ import annotations

import json
import signal
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from stopped_runs import stopped
from tiny_models import SIZES, save_random_model
from transformers import LlamaConfig

from trimtab.guidance.data.items import load_items
from trimtab.guidance.data.options import RowLimits
from trimtab.guidance.errors import DataError
from trimtab.guidance.features.layout import load_feature_manifest
from trimtab.guidance.features.source import FeatureCache
from trimtab.guidance.features.store import open_features
from trimtab.guidance.policy import load_policy
from trimtab.server.cli import main


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_random_model(LlamaConfig(**SIZES), tmp_path_factory.mktemp("model") / "tiny")


@pytest.fixture
def files(tmp_path: Path) -> dict[str, Path]:
    rows: dict[str, list[dict[str, object]]] = {
        "preferences": [{"prompt": f"say {i}", "chosen": "aaa", "rejected": f"zz{i}"} for i in range(9)],
        "rankings": [{"prompt": "say 1", "responses": ["b", "c", "d"], "ranks": [1, 3, 2]}],
        "unpaired": [{"prompt": f"do {i}", "completion": f"e{i}", "label": i % 2 == 0} for i in range(5)],
        "rollouts": [{"prompt": "say 1", "completion": f"f{i}"} for i in range(7)],
    }
    paths = {kind: tmp_path / f"{kind}.jsonl" for kind in rows}
    for kind, path in paths.items():
        path.write_text("".join(json.dumps(row) + "\n" for row in rows[kind]))
    return paths


@pytest.fixture
def run(model: Path, tmp_path: Path) -> Callable[..., int]:
    def call(*flags: object) -> int:
        command = ["features", "--model", str(model), "--out", str(tmp_path / "store"), "--no-show-progress"]
        return main([*command, *map(str, flags)])

    return call


def as_flags(files: dict[str, Path]) -> list[object]:
    return [flag for kind, path in files.items() for flag in (f"--{kind}", path)]


def complaint(capsys: pytest.CaptureFixture[str]) -> str:
    (line,) = [told for told in capsys.readouterr().err.splitlines() if told.startswith("trimtab")]
    return line


def test_every_reply_of_all_files_is_kept_as_training_asks_for_it(run, files, model, tmp_path, capsys):
    assert run(*as_flags(files), "--mismatched") == 0
    shown = capsys.readouterr().out
    policy = load_policy(model, device="cpu")
    stored, cache = open_features(tmp_path / "store", policy), FeatureCache(policy, show_progress=False)
    for kind, path in files.items():
        items = load_items(kind, path, RowLimits(), policy, mismatched=kind == "unpaired")
        replies = [reply for item in items for reply in item.replies]
        for kept, anew in zip(stored.get(replies), cache.get(replies), strict=True):
            torch.testing.assert_close(kept, anew, rtol=1e-4, atol=1e-5)
    manifest = stored.manifest
    assert f"{manifest.num_replies} replies, {manifest.num_positions} positions (all) of 32" in shown
    assert f"--features {tmp_path / 'store'}" in shown.splitlines()[-1]


def test_how_large_it_will_be_is_said_before_anything_is_written(run, files, tmp_path, capsys, monkeypatch):
    """18 different replies; each a position of 32 floats and an int, a key of 32 bytes and a count: 168."""

    def check(*args: object, **options: object) -> None:
        assert not (tmp_path / "store").exists()
        raise DataError(capsys.readouterr().out)

    monkeypatch.setattr("trimtab.server.commands.features.run.write_features", check)
    assert run("--preferences", files["preferences"], "--positions", "last") == 1
    said = complaint(capsys)
    assert "18 replies, 18 positions (last) of 32 numbers in float32: 3.02 kB in 1 shard " in said


def test_a_store_is_resumed_or_overwritten_only_when_asked(run, files, tmp_path, capsys):
    assert run("--rollouts", files["rollouts"]) == 0
    assert run("--rollouts", files["rollouts"]) == 1
    assert "resume, overwrite, or name another folder" in complaint(capsys)
    assert run("--rollouts", files["rollouts"], "--resume") == 0
    assert run("--preferences", files["preferences"], "--resume") == 1
    assert "was begun with 7 replies" in complaint(capsys)
    assert load_feature_manifest(tmp_path / "store").num_replies == 7
    assert run("--preferences", files["preferences"], "--overwrite", "--positions", "sampled") == 0
    assert load_feature_manifest(tmp_path / "store").positions.kind == "sampled"


def test_overwriting_removes_nothing_until_the_rows_are_read(run, files, tmp_path, capsys):
    assert run("--rollouts", files["rollouts"]) == 0
    files["preferences"].write_text('{"chosen": "a"}\n')
    assert run("--preferences", files["preferences"], "--overwrite") == 1
    assert "rejected is missing" in complaint(capsys)
    assert load_feature_manifest(tmp_path / "store").complete


def test_bad_and_over_long_rows_are_as_in_training(run, files, tmp_path, capsys, caplog):
    with files["rollouts"].open("a") as rows:
        rows.write(json.dumps({"prompt": "x" * 140, "completion": "y"}) + "\n")
        rows.write(json.dumps({"prompt": "x", "completion": ""}) + "\n")
    assert run("--rollouts", files["rollouts"]) == 1
    assert "completion is empty" in complaint(capsys)
    assert run("--rollouts", files["rollouts"], "--on-bad-rows", "skip") == 0
    assert "skipped 1 bad rows" in caplog.text
    assert "left out 1 rows" in caplog.text
    assert load_feature_manifest(tmp_path / "store").num_replies == 7


@pytest.mark.slow
def test_a_small_run_that_is_killed_goes_on_to_the_same_bytes_and_says_how(
    run, files, model, tmp_path, capfd
):
    """40 replies of some 50 tokens were less than a shard."""
    rows = [{"prompt": f"say {i}", "completion": "ab" * 20 + str(i)} for i in range(40)]
    files["rollouts"].write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert run("--rollouts", files["rollouts"]) == 0
    (tmp_path / "store").rename(tmp_path / "whole")
    command = ["features", "--model", str(model), "--out", str(tmp_path / "store"), "--no-show-progress"]
    command += ["--rollouts", str(files["rollouts"])]
    stopped("trimtab.guidance.features.store:_keep", 2, command)
    manifest = load_feature_manifest(tmp_path / "store")
    assert len(manifest.shards) == 2
    assert not manifest.complete
    told = stopped("trimtab.guidance.features.store:_keep", 1, [*command, "--resume"], signal.SIGINT)
    num_kept = sum(shard.num_replies for shard in load_feature_manifest(tmp_path / "store").shards)
    assert f"stopped; features of {num_kept} of 40 replies are kept" in told
    assert "--resume" in told
    assert run("--rollouts", files["rollouts"], "--resume") == 0
    names = sorted(path.name for path in (tmp_path / "whole").iterdir())
    assert sorted(path.name for path in (tmp_path / "store").iterdir()) == names
    for name in names:
        assert (tmp_path / "store" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_features_in_half_precision_know_the_policy_by_its_own_weights(run, files, model, tmp_path, dtype):
    assert run("--rollouts", files["rollouts"], "--dtype", dtype) == 0
    manifest = load_feature_manifest(tmp_path / "store")
    assert manifest.dtype == dtype
    assert manifest.base_model == load_policy(model, device="cpu").identity.base_model


@pytest.mark.parametrize(
    ("flags", "code", "says"),
    [
        ([], 2, "give at least one of --preferences"),
        (["--rollouts", "none.jsonl"], 1, "none.jsonl: no such file"),
        (["--rollouts", "ROLLOUTS", "--model", "no/such"], 1, "no/such"),
        (["--rollouts", "ROLLOUTS", "--resume", "--overwrite"], 2, "give one of them"),
        (["--rollouts", "ROLLOUTS", "--mismatched"], 2, "needs --unpaired"),
        (["--rollouts", "ROLLOUTS", "--per-reply", "0"], 2, "at least 1"),
        (["--rollouts", "ROLLOUTS", "--max-num-batched-tokens", "3"], 2, "at least max_num_seqs"),
        (["--rollouts", "ROLLOUTS", "--out", "ROLLOUTS"], 1, "exists and holds no features"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else None,
)
def test_wrong_input_is_told_in_one_line(run, files, capsys, flags, code, says):
    assert run(*[str(files["rollouts"]) if flag == "ROLLOUTS" else flag for flag in flags]) == code
    assert says in complaint(capsys)


@pytest.fixture
def train(run, model, tmp_path) -> Callable[..., int]:
    """A head on 40 pairs, from a store of such positions."""

    def call(positions: str, *parts: str) -> int:
        pairs = tmp_path / "pairs.jsonl"
        rows = [{"prompt": f"say {i}", "chosen": f"aaa{i % 7}", "rejected": f"zzz{i % 5}"} for i in range(40)]
        pairs.write_text("".join(json.dumps(row) + "\n" for row in rows))
        assert run("--preferences", pairs, "--positions", positions) == 0
        command = ["train", "--name", "vowel", "--model", model, "--preferences", pairs, "--no-show-progress"]
        command += ["--features", tmp_path / "store", "--parts", *parts]
        command += ["--head-folder", tmp_path / "head", "--run-folder", tmp_path / "run"]
        return main([str(word) for word in command])

    return call


@pytest.mark.parametrize(
    ("positions", "parts"), [("last", ["reward"]), ("all", ["reward", "value", "advantage"])]
)
def test_a_head_is_trained_on_a_store_without_running_the_policy(
    train, tmp_path, monkeypatch, positions, parts
):
    monkeypatch.setattr("trimtab.guidance.features.source._run", lambda *_: pytest.fail("ran the policy"))
    assert train(positions, *parts) == 0
    assert (tmp_path / "head" / "head.json").is_file()


def test_a_part_that_reads_more_than_a_store_holds_is_refused_in_one_line(train, tmp_path, capsys):
    assert train("last", "advantage") == 1
    assert "holds only last positions" in complaint(capsys)
    assert not (tmp_path / "head").exists()
