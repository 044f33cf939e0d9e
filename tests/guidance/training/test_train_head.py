from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from training_rows import QUICK, make_rows, quick_config
from transformers import AutoModelForCausalLM, AutoTokenizer

from trimtab.guidance.data.items import prompt_of
from trimtab.guidance.errors import DataError, HeadError
from trimtab.guidance.features.source import FeatureCache
from trimtab.guidance.heads.bank import HeadBank
from trimtab.guidance.heads.manifest import Manifest
from trimtab.guidance.heads.store import load_head
from trimtab.guidance.policy import load_policy
from trimtab.guidance.training.config import (
    AdvantageConfig,
    OptimiserConfig,
    RewardConfig,
    TrainConfig,
    ValueConfig,
)
from trimtab.guidance.training.examples import held_out_prompts, load_examples
from trimtab.guidance.training.loop import PartTrainer
from trimtab.guidance.training.scale import KL_PER_TOKEN
from trimtab.guidance.training.train_head import train_head

WANTED = "c"
FAST = OptimiserConfig(epochs=4, batch_size=16, learning_rate=1e-2)


@pytest.fixture(scope="module")
def rows(policy_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Replies of the policy itself; the chosen one holds the wanted letter, the rejected one does not."""
    torch.manual_seed(0)
    tokenizer = AutoTokenizer.from_pretrained(policy_folder)
    model = AutoModelForCausalLM.from_pretrained(policy_folder).eval()
    folder = tmp_path_factory.mktemp("rows")
    letters = "abdefghijklmnopqr"
    with (folder / "pairs.jsonl").open("w") as pairs, (folder / "rollouts.jsonl").open("w") as rollouts:
        for prompt in [f"{a} {b}" for a in letters[:10] for b in letters[:4]]:
            ids = tokenizer(prompt, return_tensors="pt").input_ids.repeat(24, 1)
            out = model.generate(ids, do_sample=True, top_k=0, max_new_tokens=8, pad_token_id=0)
            texts = [t for t in tokenizer.batch_decode(out[:, 2:], skip_special_tokens=True) if t]
            chosen = [t for t in texts if WANTED in t.split()]
            rejected = [t for t in texts if WANTED not in t.split()]
            for good, bad in zip(chosen, rejected, strict=False):
                pairs.write(json.dumps({"prompt": prompt, "chosen": good, "rejected": bad}) + "\n")
            for text in texts[:8]:
                rollouts.write(json.dumps({"prompt": prompt, "completion": text}) + "\n")
    return folder


@pytest.fixture
def config(policy_folder: Path, rows: Path, tmp_path: Path) -> TrainConfig:
    return TrainConfig(
        name="c-lover",
        model=policy_folder,
        preferences=rows / "pairs.jsonl",
        rollouts=rows / "rollouts.jsonl",
        head_folder=tmp_path / "head",
        run_folder=tmp_path / "run",
        advantage=AdvantageConfig(rank=8, optimiser=FAST),
        value=ValueConfig(width=16, optimiser=FAST),
        held_out=0.2,
        show_progress=False,
    )


@pytest.mark.parametrize("form", ["tied", "lowrank"])
def test_a_trained_head_makes_the_preferred_token_likelier_on_prompts_it_never_saw(
    form: Any, config: TrainConfig
):
    config = dataclasses.replace(config, advantage=dataclasses.replace(config.advantage, form=form))
    manifest = train_head(config)
    head, stored = load_head(config.head_folder, load_policy(config.model).identity)
    assert stored == manifest
    assert manifest.metrics["advantage_accuracy"] > 0.85
    assert manifest.metrics["reward_accuracy"] > 0.6
    part = manifest.parts.advantage
    assert part.kl_per_token == pytest.approx(KL_PER_TOKEN, rel=0.02)
    assert part.optimum == pytest.approx(1 / part.scale)
    assert manifest.parts.advantage.value_per_advantage is not None

    policy = load_policy(config.model)
    replies = [item.reply for item in load_examples(config, policy).rollouts.held_out]
    h = torch.cat(FeatureCache(policy, show_progress=False).get(replies))
    base = policy.logits(h)
    tilt = base + part.optimum * part.scale * head.advantage(h, policy.lm_head)
    wanted = policy.tokenizer.convert_tokens_to_ids(WANTED)
    gain = tilt.softmax(-1)[:, wanted].mean() / base.softmax(-1)[:, wanted].mean()
    assert gain > 1.5


def test_a_manifest_speaks_standard_units_of_held_out_rollouts(config: TrainConfig):
    """The bank's rewards on them have mean 0 and deviation 1; value_per_advantage is its values' slope."""
    manifest = train_head(config)
    policy = load_policy(config.model)
    bank = HeadBank.load([config.head_folder], policy.identity, device="cpu", dtype=torch.float32)
    replies = [item.reply for item in load_examples(config, policy).rollouts.held_out]
    features = FeatureCache(policy, show_progress=False).get(replies)
    rewards = bank.rewards(torch.stack([h[-1] for h in features]))
    assert rewards.mean().item() == pytest.approx(0, abs=1e-4)
    assert rewards.std(correction=0).item() == pytest.approx(1, abs=1e-4)

    changes, advantages = [], []
    for h, reply in zip(features, replies, strict=True):
        values = bank.values(h[:-1])[:, 0]
        weights = torch.tensor([bank.weights_row([("c-lover", 1.0)])]).repeat(len(values), 1)
        delta = bank.tied_column(h[:-1], weights, (0,)) @ policy.lm_head.T
        centred = delta - (policy.logits(h[:-1]).softmax(-1) * delta).sum(-1, keepdim=True)
        picked = centred[torch.arange(len(values)), torch.tensor(reply.reply_ids)]
        changes += values.diff().tolist()
        advantages += picked[:-1].tolist()
    slope = np.polyfit(advantages, changes, 1)[0]
    assert manifest.parts.advantage.value_per_advantage == pytest.approx(slope, rel=1e-3)


def test_no_prompt_is_both_trained_on_and_held_out(config: TrainConfig):
    examples = load_examples(config, load_policy(config.model))
    trained = {prompt_of(i) for split in (examples.rollouts, examples.pairs) for i in split.train}
    held_out = {prompt_of(i) for split in (examples.rollouts, examples.pairs) for i in split.held_out}
    assert len(held_out) == 8
    assert not trained & held_out


def test_the_split_follows_the_seed_and_not_the_order():
    prompts = [(i,) for i in range(50)]
    assert held_out_prompts(prompts, 0.2, 0) == held_out_prompts(prompts[::-1] * 2, 0.2, 0)
    assert held_out_prompts(prompts, 0.2, 0) != held_out_prompts(prompts, 0.2, 1)
    assert len(held_out_prompts(prompts, 0.01, 0)) == 1


@pytest.fixture
def quick(tmp_path: Path, policy_folder: Path) -> TrainConfig:
    make_rows(tmp_path)
    return quick_config(tmp_path, policy_folder)


def head_bytes(config: TrainConfig) -> bytes:
    return (config.head_folder / "head.safetensors").read_bytes()


def test_the_same_seed_gives_the_same_head(quick: TrainConfig, tmp_path: Path):
    config = quick
    train_head(config)
    again = dataclasses.replace(config, head_folder=tmp_path / "again", run_folder=tmp_path / "run2")
    train_head(again, features=FeatureCache(load_policy(config.model), show_progress=False))
    assert head_bytes(config) == head_bytes(again)


@pytest.mark.parametrize("stop_after", [1, 8, 16])
def test_a_resumed_run_equals_an_uninterrupted_one(
    quick: TrainConfig, tmp_path: Path, stop_after: int, monkeypatch: pytest.MonkeyPatch
):
    """Six steps of each part in two epochs: stopped in the first of the reward, which has no checkpoint yet,
    in the first of the value, and in the second of the advantage."""
    config = quick
    train_head(config)
    steps = 0
    compute_loss = PartTrainer.compute_loss

    def interrupted(self: PartTrainer, *args: Any, **kwargs: Any) -> torch.Tensor:
        nonlocal steps
        steps += 1
        if steps > stop_after:
            raise KeyboardInterrupt
        return compute_loss(self, *args, **kwargs)

    broken = dataclasses.replace(config, head_folder=tmp_path / "head2", run_folder=tmp_path / "run2")
    monkeypatch.setattr(PartTrainer, "compute_loss", interrupted)
    with pytest.raises(KeyboardInterrupt):
        train_head(broken)
    monkeypatch.undo()
    assert not [path for path in broken.run_folder.rglob("*") if path.suffix in {".pt", ".pth", ".bin"}]
    assert not broken.head_folder.exists()
    torch.manual_seed(99)
    train_head(dataclasses.replace(broken, resume=True))
    assert head_bytes(broken) == head_bytes(config)


def test_a_run_writes_its_resolved_configuration(quick: TrainConfig):
    config = quick
    train_head(config)
    written = yaml.safe_load((config.run_folder / "train_config.yaml").read_text())
    assert written["advantage"]["tau"] == 0.1
    assert written["reward"]["optimiser"]["learning_rate"] == QUICK.learning_rate
    assert written["preferences"] == str(config.preferences)


def test_resuming_with_another_configuration_is_refused_by_the_key_that_changed(quick: TrainConfig):
    config = quick
    train_head(config)
    changed = dataclasses.replace(config, resume=True, seed=1)
    with pytest.raises(DataError, match="another seed"):
        train_head(changed)


def test_resuming_with_rows_that_have_changed_is_refused_by_their_file(quick: TrainConfig):
    train_head(quick)
    path = quick.preferences
    assert path is not None
    path.write_text(path.read_text().replace("a b", "a c", 1))
    resumed = dataclasses.replace(quick, resume=True)
    with pytest.raises(DataError, match=r"preferences.*has changed since .* start without resume"):
        train_head(resumed)
    train_head(dataclasses.replace(quick, resume=False))
    train_head(resumed)


def test_without_rollouts_the_replies_of_the_preferences_teach_the_value(config: TrainConfig):
    manifest = train_head(dataclasses.replace(config, rollouts=None))
    pairs = manifest.metrics["train_pairs"] + manifest.metrics["held_out_pairs"]
    replies = manifest.metrics["train_rollouts"] + manifest.metrics["held_out_rollouts"]
    assert pairs < replies <= 2 * pairs


def test_rows_longer_than_max_tokens_are_left_out_with_a_warning(config: TrainConfig, caplog):
    policy = load_policy(config.model)
    examples = load_examples(dataclasses.replace(config, max_tokens=9, rows="text"), policy)
    assert "left out" in caplog.text
    assert max(i.reply.num_tokens for i in examples.rollouts.train) <= 9
    with pytest.raises(DataError, match="max_tokens=1"):
        load_examples(dataclasses.replace(config, max_tokens=1), policy)


def test_a_destination_that_holds_something_else_is_refused_before_training(config: TrainConfig):
    config.head_folder.mkdir()
    (config.head_folder / "notes.txt").write_text("mine")
    with pytest.raises(HeadError, match="is no head folder"):
        train_head(config)


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"name": "Kind!"}, "name"),
        ({"held_out": 1.0}, "held_out"),
        ({"max_tokens": 0}, "max_tokens"),
    ],
)
def test_a_bad_configuration_is_refused_at_once(config: TrainConfig, change: dict[str, Any], named: str):
    with pytest.raises(ValueError, match=named):
        dataclasses.replace(config, **change)


@pytest.mark.parametrize(
    "build",
    [
        lambda: AdvantageConfig(loss="bradley_terry"),
        lambda: RewardConfig(loss="dpo"),
        lambda: ValueConfig(loss="magic"),
    ],
)
def test_a_loss_of_another_part_is_refused(build):
    with pytest.raises(ValueError, match="loss must be one of"):
        build()


def test_messages_train_like_strings(config: TrainConfig, tmp_path: Path):
    chat = tmp_path / "chat.jsonl"
    with config.preferences.open() as source, chat.open("w") as target:
        for line in source:
            row = json.loads(line)
            row["prompt"] = [{"role": "user", "content": row["prompt"]}]
            target.write(json.dumps(row) + "\n")
    manifest: Manifest = train_head(dataclasses.replace(config, preferences=chat, rollouts=None))
    assert manifest.metrics["advantage_accuracy"] > 0.8
