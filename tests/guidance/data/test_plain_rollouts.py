"""Replies that the policy alone would not have written do not pass for plain samples of it."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from training_rows import QUICK, make_rows, quick_config, write_rows

from trimtab.guidance.data.load import load_rollouts
from trimtab.guidance.data.plain_rollouts import departure, plain_only
from trimtab.guidance.errors import DataError
from trimtab.guidance.heads.manifest import load_manifest
from trimtab.guidance.training.config import AdvantageConfig, RewardConfig, TrainConfig, ValueConfig
from trimtab.guidance.training.train_head import train_head

REGRESSION = RewardConfig(loss="regression")


@pytest.fixture
def config(tmp_path: Path, policy_folder: Path) -> TrainConfig:
    make_rows(tmp_path)
    config = quick_config(tmp_path, policy_folder, rollouts=tmp_path / "rollouts.jsonl", preferences=None)
    return dataclasses.replace(config, reward=REGRESSION, parts=("reward",))


def rewrite(config: TrainConfig, every: int = 1, **columns: Any) -> int:
    """Says these columns of every so-manieth rollout; returns how many rows the file has."""
    assert config.rollouts is not None
    rows = [json.loads(line) for line in config.rollouts.read_text().splitlines()]
    write_rows(config.rollouts, [row | columns if i % every == 0 else row for i, row in enumerate(rows)])
    return len(rows)


@pytest.mark.parametrize(
    ("said", "is_plain"),
    [
        ({}, True),
        ({"strength": 0.0, "kl": 0.0, "temperature": 1.0, "top_p": 1.0}, True),
        ({"strength": -0.5}, False),
        ({"strength": 0.0, "kl": 0.7}, False),
        ({"temperature": 0.7}, False),
        ({"temperature": 0.0}, False),
        ({"top_p": 0.9}, False),
    ],
)
def test_a_reply_is_plain_where_nothing_says_otherwise(said, is_plain):
    assert (departure(**said) == "") == is_plain


@pytest.mark.parametrize(
    ("said", "says"),
    [
        ({"strength": 2.0}, "strength 2"),
        ({"temperature": 0.7}, "temperature 0.7"),
        ({"top_p": 0.9}, "top_p 0.9"),
        ({"kl": 1.5}, "1.5 nats of KL"),
    ],
)
@pytest.mark.parametrize("every", [1, 3])
@pytest.mark.parametrize(
    ("part", "loss"),
    [
        ("value", "monte_carlo"),
        ("value", "position_weighted"),
        ("value", "td_lambda"),
        ("value", "distributional"),
        ("advantage", "monte_carlo"),
        ("advantage", "cd_q"),
    ],
)
def test_what_assumes_the_policy_itself_refuses_others_by_name(config, part, loss, every, said, says):
    num = rewrite(config, every, **said)
    chosen = {
        "value": ValueConfig(width=8, loss=loss if part == "value" else "monte_carlo", optimiser=QUICK),
        "advantage": AdvantageConfig(rank=4, loss=loss if part == "advantage" else "cd_q", optimiser=QUICK),
    }
    with pytest.raises(DataError) as told:
        train_head(dataclasses.replace(config, parts=(part,), **chosen))
    for text in (
        f"{-(-num // every)} of {num} rollouts",
        says,
        f"{part}.loss={loss}",
        "loss=regression",
        "dpo",
    ):
        assert text in str(told.value)
    assert not config.head_folder.exists()


def test_skipping_leaves_the_others_out_and_counts_them(config, caplog):
    num = rewrite(config, 4, strength=1.0)
    config = dataclasses.replace(
        config, parts=("value",), value=ValueConfig(width=8, optimiser=QUICK), on_bad_rows="skip"
    )
    with caplog.at_level("WARNING"):
        manifest = train_head(config)
    num_left = -(-num // 4)
    assert f"{num_left} of {num} rollouts" in caplog.text
    assert manifest.metrics["train_rollouts"] + manifest.metrics["held_out_rollouts"] == num - num_left


LEARN = {
    "steered": "learn",
    "parts": ("value", "advantage"),
    "value": ValueConfig(width=8, optimiser=QUICK),
    "advantage": AdvantageConfig(rank=4, loss="monte_carlo", optimiser=QUICK),
}


def test_returns_of_a_steered_policy_are_learned_where_asked_for_and_units_stay_the_plain_ones(config):
    num = rewrite(config, 2, strength=1.0)
    config = dataclasses.replace(config, **LEARN)
    beside = dataclasses.replace(config, head_folder=config.head_folder.parent / "plain", steered="refuse")
    beside = dataclasses.replace(beside, on_bad_rows="skip")
    both, plain = train_head(config), train_head(beside)
    assert both.metrics["train_rollouts"] + both.metrics["held_out_rollouts"] == num
    assert both.metrics["unit_rollouts"] == plain.metrics["unit_rollouts"] < both.metrics["held_out_rollouts"]
    assert (both.reward_mean, both.reward_std) == (plain.reward_mean, plain.reward_std)
    weights = [(c.head_folder / "head.safetensors").read_bytes() for c in (config, beside)]
    assert weights[0] != weights[1]


@pytest.mark.parametrize(
    ("said", "loss", "told"),
    [
        ({"strength": 1.0, "temperature": 0.7}, "monte_carlo", "strength 1"),
        ({"temperature": 0.7}, "monte_carlo", "temperature 0.7"),
        ({"strength": 1.0}, "cd_q", "advantage.loss=cd_q cannot learn from steered rollouts"),
    ],
)
def test_learning_from_steered_replies_takes_no_others_and_no_forecasts_of_the_policy(
    config, said, loss, told
):
    rewrite(config, 2, **said)
    learn = LEARN | {"advantage": AdvantageConfig(rank=4, loss=loss, optimiser=QUICK)}
    with pytest.raises(DataError, match=told):
        train_head(dataclasses.replace(config, **learn))


def test_steered_replies_alone_have_no_units(config):
    rewrite(config, strength=1.0)
    with pytest.raises(DataError, match="no plain rollouts are left"):
        train_head(dataclasses.replace(config, **LEARN))


def test_a_scale_and_standard_units_are_refused_too_where_pairs_teach_the_rest(config, tmp_path):
    rewrite(config, strength=1.0)
    both = dataclasses.replace(
        config,
        preferences=tmp_path / "preferences.jsonl",
        parts=("advantage",),
        advantage=AdvantageConfig(rank=4, optimiser=QUICK),
    )
    with pytest.raises(DataError, match="scale and standard units"):
        train_head(both)


@pytest.mark.parametrize("every", [1, 2])
def test_a_reward_by_regression_learns_from_any_replies_and_has_units_of_plain_ones(config, every, caplog):
    """With none that is plain it speaks raw."""
    plain = train_head(config)
    rewrite(config, every, strength=1.0)
    beside = dataclasses.replace(config, head_folder=config.head_folder.parent / "steered")
    with caplog.at_level("WARNING"):
        manifest = train_head(beside)
    assert manifest.metrics["train_rollouts"] == plain.metrics["train_rollouts"]
    assert manifest.metrics["reward_correlation"] == pytest.approx(plain.metrics["reward_correlation"])
    units = (manifest.reward_mean, manifest.reward_std)
    if every == 1:
        assert units == (0.0, 1.0)
        assert "no plain rollouts are held out" in caplog.text
    else:
        assert units != (0.0, 1.0)
        assert units != (plain.reward_mean, plain.reward_std)
    assert load_manifest(beside.head_folder).reward_std == manifest.reward_std


def test_pairs_of_steered_replies_are_pairs(config, tmp_path):
    pairs = dataclasses.replace(
        config,
        rollouts=None,
        preferences=tmp_path / "preferences.jsonl",
        parts=("advantage",),
        advantage=AdvantageConfig(rank=4, optimiser=QUICK),
    )
    assert train_head(pairs).parts.advantage is not None


def test_the_metadata_of_an_older_file_tell_for_all_its_rows(tmp_path):
    rows = [{"prompt": "a", "completion": "b", "strength": 0.0}] * 2
    for made_by, says in (
        ({"temperature": 0.5, "top_p": 1.0}, "temperature 0.5"),
        ({"temperature": 1.0, "top_p": 0.8}, "top_p 0.8"),
        ({"temperature": 1.0, "top_p": 1.0}, ""),
        ({}, ""),
        ([], ""),
    ):
        table = pa.Table.from_pylist(rows).replace_schema_metadata({b"trimtab": json.dumps(made_by).encode()})
        pq.write_table(table, tmp_path / "old.parquet")
        assert {row.departure for row in load_rollouts(tmp_path / "old.parquet").rows} == {says}


def test_plain_rows_pass_untouched():
    rows = [dataclasses.make_dataclass("Row", ["departure"])("") for _ in range(3)]
    assert plain_only(rows, "file", "a value", skip=False) == rows
