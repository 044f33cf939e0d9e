"""Heads of random labels and rewards say that they learned nothing, and heads of sense that they did."""

from __future__ import annotations

import dataclasses
import json
import logging
import random
from pathlib import Path
from typing import Any

import pytest
from training_rows import LETTERS, WANTED, quick_config, reply, write_rows

from trimtab.guidance.heads.manifest import load_manifest
from trimtab.guidance.heads.verdict import verdicts
from trimtab.guidance.training.config import (
    AdvantageConfig,
    OptimiserConfig,
    RewardConfig,
    TrainConfig,
    ValueConfig,
)
from trimtab.guidance.training.learning_curve import PICTURE_FILE
from trimtab.guidance.training.train_head import train_head

FAST = OptimiserConfig(epochs=6, batch_size=16, learning_rate=2e-2)
PROMPTS = [f"{a} {b}" for a in LETTERS for b in LETTERS][:130]
KINDS = {"advantage": AdvantageConfig, "value": ValueConfig, "reward": RewardConfig}
ROWS = {
    "preferences": ("dpo", "ipo", "simpo", "bradley_terry"),
    "unpaired": ("kto", "good_bad"),
    "rankings": ("ranked",),
}


def make_all_rows(folder: Path, *, has_sense: bool, seed: int = 2, of_prompt: bool = False) -> None:
    """Rows about the wanted letter; without sense, labels and rewards are drawn by chance. of_prompt: rewards
    are the place of the prompt's first letter."""
    draw, chance = random.Random(1), random.Random(seed)
    rows: dict[str, list[dict[str, Any]]] = {
        "preferences": [],
        "unpaired": [],
        "rankings": [],
        "rollouts": [],
    }
    for prompt in PROMPTS:
        pair = [reply(draw, wanted=True), reply(draw, wanted=False)]
        if not has_sense:
            chance.shuffle(pair)
        good, bad = pair
        rows["preferences"].append({"prompt": prompt, "chosen": good, "rejected": bad})
        rows["rankings"].append({"prompt": prompt, "responses": [bad, good], "ranks": [2, 1]})
        for text, label in ((good, True), (bad, False)):
            earned = [float(letter == WANTED) for letter in text.split()]
            wanted = LETTERS.index(prompt[0]) / 3 if of_prompt else sum(earned)
            reward = wanted if has_sense else chance.gauss(0, 1)
            rows["unpaired"].append({"prompt": prompt, "completion": text, "label": label})
            rows["rollouts"].append({"prompt": prompt, "completion": text, "reward": reward})
    for kind, some in rows.items():
        write_rows(folder / f"{kind}.jsonl", some)


def config_for(folder: Path, policy: Path, part: Any, loss: str) -> TrainConfig:
    kind = next((kind for kind, losses in ROWS.items() if loss in losses), "rollouts")
    options: dict[str, Any] = {"loss": loss} | ({} if part == "reward" else {"optimiser": FAST})
    if part == "advantage":
        options["rank"] = 8
    if loss == "distributional":
        options |= {"low": -3.0, "high": 3.0, "bins": 13}
    parts = (part,)
    return quick_config(
        folder,
        policy,
        **{
            "preferences": None,
            kind: folder / f"{kind}.jsonl",
            "parts": parts,
            "held_out": 0.4,
            "rows": "text",
        },
        **{part: KINDS[part](**options)},
    )


@pytest.mark.parametrize(
    ("part", "loss"),
    [
        ("advantage", "dpo"),
        ("advantage", "kto"),
        ("advantage", "monte_carlo"),
        ("reward", "bradley_terry"),
        ("reward", "good_bad"),
        ("reward", "regression"),
        ("value", "monte_carlo"),
    ],
)
@pytest.mark.parametrize("has_sense", [True, False])
def test_a_head_says_whether_it_has_learned_anything(
    part: str, loss: str, has_sense: bool, tmp_path: Path, policy_folder: Path, caplog: Any
):
    """Of forty heads of noise one would pass its 95 % interval by chance; this seed has none of them."""
    caplog.set_level(logging.INFO)
    make_all_rows(tmp_path, has_sense=has_sense, seed=3, of_prompt=part == "value")
    config = config_for(tmp_path, policy_folder, part, loss)
    manifest = train_head(config)
    found = verdicts(load_manifest(config.head_folder).metrics)[part]
    assert found.has_learned is has_sense, str(found)
    assert found.words.startswith("better" if has_sense else ("no better", "worse")), str(found)
    assert f"{part}: {found}" in caplog.text
    nothing = manifest.metrics[f"{part}_loss_of_nothing"]
    if has_sense:
        assert manifest.metrics[f"{part}_loss"] < nothing
    if part == "reward":
        assert manifest.metrics[f"{part}_loss"] <= nothing * (1 + 1e-4)
    assert (config.run_folder / PICTURE_FILE).read_bytes().startswith(b"\x89PNG")
    warned = [record for record in caplog.records if record.levelno == logging.WARNING]
    assert any(str(found) in record.getMessage() for record in warned) is not has_sense


def test_one_held_out_pair_and_two_held_out_replies_are_neither_accuracy_nor_unit(
    tmp_path: Path, policy_folder: Path, caplog: Any
):
    make_all_rows(tmp_path, has_sense=True)
    rows = (tmp_path / "preferences.jsonl").read_text().splitlines()[:12]
    write_rows(tmp_path / "preferences.jsonl", [json.loads(row) for row in rows])
    config = dataclasses.replace(
        config_for(tmp_path, policy_folder, "advantage", "dpo"), parts=("reward", "advantage"), held_out=0.01
    )
    manifest = train_head(dataclasses.replace(config, reward=RewardConfig()))
    assert manifest.metrics["held_out_pairs"] == 1
    for part in ("reward", "advantage"):
        assert f"{part}_accuracy" not in manifest.metrics
        assert verdicts(manifest.metrics)[part].words == "too few to tell (1 pair)"
    assert "length_accuracy" not in manifest.metrics
    assert (manifest.reward_mean, manifest.reward_std) == (0, 1)
    assert manifest.metrics["unit_rollouts"] == 0
    assert "too few for standard units" in caplog.text


@pytest.mark.slow
def test_rows_that_stopped_a_part_do_not_judge_it_where_there_are_enough(tmp_path: Path, policy_folder: Path):
    """52 of 130 prompts are held out: 26 stop the advantage and the others judge it; all judge the reward."""
    make_all_rows(tmp_path, has_sense=True)
    config = config_for(tmp_path, policy_folder, "advantage", "dpo")
    config = dataclasses.replace(config, parts=("reward", "advantage"), reward=RewardConfig())
    metrics = train_head(config).metrics
    assert (metrics["advantage_validation_rows"], metrics["advantage_pairs"]) == (26, 26)
    assert metrics["advantage_judged"] == 26
    assert "advantage_validation_is_shared" not in metrics
    assert (metrics["reward_pairs"], metrics["reward_judged"]) == (52, 52)
    few = dataclasses.replace(config, held_out=0.15, run_folder=tmp_path / "few")
    metrics = train_head(few).metrics
    assert metrics["advantage_validation_is_shared"] == 1
    assert metrics["advantage_validation_rows"] == metrics["advantage_pairs"] == 20
    assert "the same rows chose its epoch" in str(verdicts(metrics)["advantage"])


@pytest.mark.parametrize(
    ("part", "loss", "nothing"),
    [
        ("advantage", "dpo", 0.6931472),
        ("advantage", "ipo", 25.0),
        ("advantage", "kto", 0.5),
        ("reward", "ranked", 0.6931472),
        ("reward", "good_bad", 0.6931472),
    ],
)
def test_the_loss_of_knowing_nothing_by_hand(
    part: str, loss: str, nothing: float, tmp_path: Path, policy_folder: Path
):
    """ln 2; (1/(2τ))² with τ = 0.1; 1 − σ(0)."""
    make_all_rows(tmp_path, has_sense=True)
    config = config_for(tmp_path, policy_folder, part, loss)
    once = OptimiserConfig(epochs=1, batch_size=32, learning_rate=1e-2)
    if part == "advantage":
        config = dataclasses.replace(config, advantage=dataclasses.replace(config.advantage, optimiser=once))
    assert train_head(config).metrics[f"{part}_loss_of_nothing"] == pytest.approx(nothing, abs=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("parts", "loss", "form"),
    [
        (("advantage",), "cd_q", "tied"),
        (("advantage",), "cd_q", "lowrank"),
        (("value", "advantage"), "distil", "tied"),
        (("value",), "distributional", "linear"),
        (("value",), "td_lambda", "mlp"),
    ],
)
def test_a_finished_run_that_is_resumed_says_the_same(
    parts: Any, loss: str, form: Any, tmp_path: Path, policy_folder: Path
):
    """Nothing that only training prepares is needed to judge."""
    make_all_rows(tmp_path, has_sense=True)
    part, once = parts[-1], OptimiserConfig(epochs=2, batch_size=64, learning_rate=1e-2)
    config = config_for(tmp_path, policy_folder, part, loss)
    own = dataclasses.replace(getattr(config, part), form=form, optimiser=once)
    config = dataclasses.replace(config, parts=parts, **{part: own})
    first = train_head(config)
    assert train_head(dataclasses.replace(config, resume=True)) == first
    assert first.metrics[f"{part}_gain"] == pytest.approx(
        first.metrics[f"{part}_loss_of_nothing"] - first.metrics[f"{part}_loss"], abs=1e-5
    )
