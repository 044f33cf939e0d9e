"""Adapters trained on a tiny policy, merged, and measured."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest
import torch
import yaml
from failing_renames import contents, fail_into
from tiny_models import EOS, SIZES, save_random_model
from transformers import AutoModelForCausalLM, LlamaConfig

from trimtab.guidance.errors import DataError, PolicyError
from trimtab.guidance.policy import load_policy
from trimtab.guidance.training.lora.config import LoraConfig
from trimtab.guidance.training.lora.train import CONFIG_FILE, completion_rows, merge, preference_rows, tune


def write(path: Path, rows: list[dict[str, object]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture(scope="module")
def policy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_random_model(LlamaConfig(**SIZES), tmp_path_factory.mktemp("policy") / "tiny")


@pytest.fixture(scope="module")
def config(policy: Path, tmp_path_factory: pytest.TempPathFactory) -> LoraConfig:
    folder = tmp_path_factory.mktemp("lora")
    rows = [{"prompt": f"say {i}", "chosen": f"aaa{i % 7}", "rejected": f"zzz{i % 5}"} for i in range(32)]
    return LoraConfig(
        model=policy,
        out=folder / "out",
        preferences=write(folder / "pairs.jsonl", rows),
        merge=True,
        scales=(0.0, 1.0),
        rank=4,
        epochs=4,
        batch_size=8,
        learning_rate=5e-3,
        show_progress=False,
    )


@pytest.fixture(scope="module")
def tuned(config):
    return tune(config)


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return dict(AutoModelForCausalLM.from_pretrained(folder).state_dict())


def test_dpo_raises_the_chosen_reply_above_the_rejected_one(config, policy, tuned):
    merged = load_policy(tuned.merged[1.0])
    before, after = (margins(config, model) for model in (load_policy(policy), merged))
    assert (after - before).mean() > 3 * abs((after - before).std()) / len(after) ** 0.5
    assert (after - before).mean() > 1


def margins(config: LoraConfig, policy) -> torch.Tensor:
    """log π(chosen) − log π(rejected) by rows."""

    def log_probability(prompt: list[int], reply: list[int]) -> float:
        with torch.no_grad():
            logits = policy.model(torch.tensor([prompt + reply])).logits[0, len(prompt) - 1 : -1]
        return logits.log_softmax(-1)[range(len(reply)), reply].sum().item()

    rows = preference_rows(config, policy)
    return torch.tensor(
        [
            log_probability(row["prompt_ids"], row["chosen_ids"])
            - log_probability(row["prompt_ids"], row["rejected_ids"])
            for row in rows
        ]
    )


def test_a_merged_folder_is_a_plain_model_that_differs(policy, tuned):
    base, merged = weights(policy), weights(tuned.merged[1.0])
    assert base.keys() == merged.keys()
    assert any(not torch.equal(base[name], merged[name]) for name in base)
    assert not list(tuned.merged[1.0].glob("adapter*"))


def test_the_adapter_at_scale_zero_is_bitwise_the_policy(policy, tuned):
    base, merged = weights(policy), weights(tuned.merged[0.0])
    assert all(torch.equal(base[name], merged[name]) for name in base)


def test_weights_are_safetensors_only(config, tuned):
    suffixes = {path.suffix for path in config.out.rglob("*") if path.is_file()}
    assert ".safetensors" in suffixes
    assert not suffixes & {".bin", ".pt", ".pkl", ".pth"}


def test_the_resolved_configuration_is_written(config, tuned):
    written = yaml.safe_load((config.out / CONFIG_FILE).read_text())
    assert written.keys() == {field.name for field in dataclasses.fields(LoraConfig)}
    assert (written["rank"], written["scales"]) == (4, [0.0, 1.0])


def test_an_adapter_trained_before_is_merged_without_training(config, policy, tuned, tmp_path):
    again = tune(
        dataclasses.replace(
            config, preferences=None, adapter=tuned.adapter, out=tmp_path, scales=(1.0,), method="sft"
        )
    )
    first, second = weights(tuned.merged[1.0]), weights(again.merged[1.0])
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_merging_again_and_failing_leaves_the_older_model_readable_by_all(config, tuned, monkeypatch):
    folder = tuned.merged[1.0]
    before = contents(config.out)
    fail_into(folder, monkeypatch)
    with pytest.raises(OSError, match="No space left on device"):
        merge(config, 0.5, folder)
    assert contents(config.out) == before
    assert all(path.stat().st_mode & 0o044 for path in (*folder.iterdir(), *tuned.adapter.iterdir()))


def test_sft_makes_its_completions_likelier(config, policy, tmp_path):
    rows = [{"prompt": f"say {i}", "completion": "aaaa"} for i in range(16)]
    sft = dataclasses.replace(
        config,
        method="sft",
        preferences=None,
        completions=write(tmp_path / "rows.jsonl", rows),
        out=tmp_path / "out",
        merge=False,
    )
    losses = [step["loss"] for step in tune(dataclasses.replace(sft, epochs=20)).history if "loss" in step]
    assert losses[-1] < losses[0] - 0.5


def test_labels_are_the_reply_with_the_policys_end_token(config, policy, tmp_path):
    rows = write(tmp_path / "rows.jsonl", [{"prompt": "ab", "completion": "cd"}])
    sft = dataclasses.replace(config, method="sft", preferences=None, completions=rows)
    (row,) = completion_rows(sft, load_policy(policy))
    assert row["labels"][:2] == [-100, -100]
    assert row["labels"][2:] == row["input_ids"][2:]
    assert row["input_ids"][-1] == EOS
    assert len(row["input_ids"]) == 5


def test_replies_are_the_tokens_they_were_sampled_as_and_cut_ones_have_no_end(config, policy, tmp_path):
    row = {"prompt": "ab", "chosen": "cd", "chosen_token_ids": [67, 68, EOS], "rejected": "ef"}
    row |= {"rejected_token_ids": [69, 70], "rejected_is_cut": True}
    pairs = dataclasses.replace(config, preferences=write(tmp_path / "pairs.jsonl", [row]))
    (encoded,) = preference_rows(pairs, load_policy(policy))
    assert encoded["chosen_ids"] == [67, 68, EOS]
    assert encoded["rejected_ids"] == [69, 70]


def test_rows_over_the_context_are_left_out_and_all_of_them_refused(config, policy, tmp_path):
    pairs = [{"prompt": "a", "chosen": "b" * n, "rejected": "c"} for n in (3, 50)]
    some = dataclasses.replace(config, preferences=write(tmp_path / "pairs.jsonl", pairs), max_tokens=20)
    assert len(preference_rows(some, load_policy(policy))) == 1
    with pytest.raises(DataError, match="max_tokens=2"):
        preference_rows(dataclasses.replace(some, max_tokens=2), load_policy(policy))


def test_target_modules_that_the_model_lacks_are_named(config, tmp_path):
    wrong = dataclasses.replace(config, target_modules="no_such", out=tmp_path)
    with pytest.raises(PolicyError, match="no_such"):
        tune(wrong)
    assert not (tmp_path / "adapter").exists()


def test_a_folder_without_safetensors_is_no_adapter(config, tmp_path):
    (tmp_path / "adapter_model.bin").write_bytes(b"pickle")
    with pytest.raises(PolicyError, match="adapter_model"):
        tune(dataclasses.replace(config, preferences=None, adapter=tmp_path, out=tmp_path / "out"))


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"rank": 0}, "rank"),
        ({"learning_rate": float("nan")}, "learning_rate"),
        ({"preferences": None}, "needs preferences"),
        ({"method": "sft"}, "needs completions"),
        ({"completions": Path("x")}, "preferences and completions"),
        ({"adapter": Path("x")}, "needs no rows"),
        ({"flipped": 0.1, "loss_type": "ipo"}, "flipped"),
        ({"scales": ()}, "scales"),
        ({"scales": (1.0, 1.0)}, "twice"),
        ({"dropout": 1.0}, "dropout"),
    ],
)
def test_a_configuration_that_means_nothing_is_refused(config, change, says):
    with pytest.raises(ValueError, match=says):
        dataclasses.replace(config, **change)
