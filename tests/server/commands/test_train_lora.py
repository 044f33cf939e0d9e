"""`trimtab train --lora` from the command line to points for a frontier."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import pytest
from peft import PeftModel
from safetensors import SafetensorError
from tiny_models import SIZES, save_random_model
from transformers import LlamaConfig

from trimtab.guidance.errors import DataError, UsageError, UserError
from trimtab.server.commands.train import lora as train_lora


@pytest.fixture
def flags(tmp_path: Path) -> list[str]:
    policy = save_random_model(LlamaConfig(**SIZES), tmp_path / "tiny")
    rows = [{"prompt": f"say {i}", "chosen": "aaa", "rejected": f"zzz{i}"} for i in range(16)]
    (tmp_path / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return [
        *("--lora", "--model", str(policy), "--preferences", str(tmp_path / "pairs.jsonl")),
        *(
            "--out",
            str(tmp_path / "out"),
            "--rank",
            "2",
            "--learning-rate",
            "1e-2",
            "--batch-size",
            "4",
            "--no-show-progress",
        ),
    ]


def test_points_tell_the_kl_of_each_scale_with_its_texts(flags, tmp_path, capsys):
    (tmp_path / "prompts.jsonl").write_text(
        "".join(json.dumps({"prompt": f"say {i}"}) + "\n" for i in range(5))
    )
    measured = ["--merge", "--scales", "0", "1", "--measure", str(tmp_path / "prompts.jsonl")]
    few = ["--num-prompts", "3", "--num-replies", "2", "--reply-tokens", "8"]
    train_lora.main("trimtab train", [*flags, *measured, *few])
    assert f"trimtab serve --model {tmp_path / 'out/merged-1'}" in capsys.readouterr().out
    document = json.loads((tmp_path / "out/points.json").read_text())
    plain, tuned = document["points"]
    assert (plain["scale"], plain["kl"]) == (0, 0)
    assert tuned["kl"] == pytest.approx(sum(tuned["kls"]) / 6)
    assert tuned["kl"] > 0
    for name in ("kls", "texts", "prompt_ids", "samples", "is_cut"):
        assert len(tuned[name]) == 6
    assert tuned["prompt_ids"] == [0, 0, 1, 1, 2, 2]
    assert tuned["samples"] == [0, 1, 0, 1, 0, 1]


def test_a_missing_extra_is_told_with_the_fix(flags, monkeypatch):
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "trl" else find(name))
    with pytest.raises(UserError, match=r"needs trl: pip install trimtab\[lora\]"):
        train_lora.main("trimtab train", flags)


def test_measuring_without_merging_is_refused(flags):
    with pytest.raises(UsageError, match="--merge"):
        train_lora.main("trimtab train", [*flags, "--measure", "prompts.jsonl"])


def test_rows_that_do_not_exist_are_named_and_nothing_is_left(flags, tmp_path):
    with pytest.raises(DataError, match=r"none\.jsonl"):
        train_lora.main("trimtab train", [*flags, "--preferences", "none.jsonl"])
    assert not (tmp_path / "out/adapter").exists()


def test_a_full_disk_is_told_and_leaves_no_half_a_folder(flags, tmp_path, monkeypatch):
    def fill(self, folder: Path) -> None:
        (folder / "adapter_config.json").write_text("{}")
        raise SafetensorError("I/O error: No space left on device (os error 28)")

    monkeypatch.setattr(PeftModel, "save_pretrained", fill)
    with pytest.raises(UserError, match=r"out cannot be written: .*No space left"):
        train_lora.main("trimtab train", flags)
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["lora_config.yaml"]
