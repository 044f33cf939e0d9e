"""`trimtab train` on a handful of preferences, and what it wrote served."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
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
        *("--advantage.rank", "4", "--value.width", "8", "--no-show-progress"),
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
