"""`trimtab train` on a handful of preferences, and what it wrote served."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load, load_file
from tiny_models import SIZES, save_random_model
from transformers import LlamaConfig

from trimtab.server.cli import main
from trimtab.server.engine.config import EngineConfig
from trimtab.server.engine.engine import Engine


@pytest.fixture
def flags(tmp_path: Path) -> list[str]:
    policy = save_random_model(LlamaConfig(**SIZES), tmp_path / "tiny")
    rows = [{"prompt": f"say {i}", "chosen": f"aaa{i % 7}", "rejected": f"zzz{i % 5}"} for i in range(60)]
    (tmp_path / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return [
        *("--name", "vowel", "--model", str(policy), "--preferences", str(tmp_path / "pairs.jsonl")),
        *("--head-folder", str(tmp_path / "heads/vowel"), "--run-folder", str(tmp_path / "run")),
        *("--advantage.rank", "4", "--value.width", "8", "--held-out", "0.25", "--no-show-progress"),
    ]


def test_a_trained_head_is_shown_and_can_be_served(flags, tmp_path, capsys):
    assert main(["train", *flags]) == 0
    shown = capsys.readouterr().out
    assert "metrics.reward_accuracy" in shown
    assert f"--heads {tmp_path / 'heads/vowel'}" in shown
    config = EngineConfig(tmp_path / "tiny", (tmp_path / "heads/vowel",), kv_cache_gib=0.01)
    (head,) = Engine.from_config(config).info.heads
    assert (head.name, head.has_advantage, head.has_value, head.has_reward) == ("vowel", True, True, True)


@pytest.mark.parametrize(
    ("wrong", "says"),
    [(["--preferences", "none.jsonl"], "none.jsonl"), (["--model", "no/such"], "no/such")],
)
def test_wrong_input_is_told_in_one_line(flags, capsys, wrong, says):
    capsys.readouterr()
    assert main(["train", *flags, *wrong]) == 1
    (line,) = [told for told in capsys.readouterr().err.splitlines() if told.startswith("trimtab")]
    assert says in line


def test_a_loss_that_does_not_exist_is_refused(flags, capsys):
    assert main(["train", *flags, "--advantage.loss", "magic"]) == 2
    assert "dpo" in capsys.readouterr().err


def test_a_runs_own_configuration_trains_the_same_head_and_flags_count_more(flags, tmp_path, capsys):
    assert main(["train", *flags, "--parts", "reward"]) == 0
    written = tmp_path / "run/train_config.yaml"
    again = ["--head-folder", str(tmp_path / "again"), "--run-folder", str(tmp_path / "run2")]
    assert main(["train", "--config", str(written), *again]) == 0
    heads = [tmp_path / folder / "head.safetensors" for folder in ("heads/vowel", "again")]
    assert heads[0].read_bytes() == heads[1].read_bytes()
    assert main(["train", f"--config={written}", *again, "--name", "other", "--seed", "3"]) == 0
    assert "other" in capsys.readouterr().out
    assert heads[0].read_bytes() != heads[1].read_bytes()


@pytest.mark.parametrize(
    ("args", "code", "says"),
    [
        (["--config", "none.yaml"], 1, "none.yaml: cannot be read"),
        (["--config"], 2, "--config needs a YAML file"),
        (["--advantage.loss", "kto"], 1, "advantage.loss=kto needs --unpaired"),
        (["--advantage.loss", "robust_dpo"], 2, "needs flipped"),
        (["--unpaired", "thumbs.jsonl", "--parts", "reward"], 1, "--unpaired is read by no part"),
        (["--stream", "--features", "none"], 2, "give one of them"),
        (["--features", "none"], 1, "none"),
        (["--start-from", "none"], 1, "none is not a head folder"),
    ],
)
def test_a_run_that_cannot_be_is_told_in_one_line(flags, capsys, args, code, says):
    capsys.readouterr()
    assert main(["train", *flags, *args]) == code
    (line,) = [told for told in capsys.readouterr().err.splitlines() if told.startswith("trimtab")]
    assert says in line


def test_columns_that_nothing_reads_are_refused_or_ignored(flags, tmp_path, capsys):
    rows = tmp_path / "pairs.jsonl"
    rows.write_text(rows.read_text().replace("{", '{"margn": 1.0, "source": "web", '))
    assert main(["train", *flags, "--parts", "reward"]) == 1
    assert "preferences have no column margn," in capsys.readouterr().err
    assert main(["train", *flags, "--parts", "reward", "--extra-columns", "ignore"]) == 0


def test_streamed_features_train_the_same_head(flags, tmp_path):
    assert main(["train", *flags, "--parts", "reward"]) == 0
    kept = (tmp_path / "heads/vowel/head.safetensors").read_bytes()
    assert main(["train", *flags, "--parts", "reward", "--stream"]) == 0
    streamed = load_file(tmp_path / "heads/vowel/head.safetensors")
    for name, tensor in load(kept).items():
        torch.testing.assert_close(streamed[name], tensor, rtol=1e-3, atol=1e-5)


def test_help_shows_examples_and_every_group(capsys):
    with pytest.raises(SystemExit):
        main(["train", "--help"])
    shown = capsys.readouterr().out
    for text in ("--advantage.loss dpo", "--advantage.loss monte_carlo", "reward options", "--config"):
        assert text in shown
