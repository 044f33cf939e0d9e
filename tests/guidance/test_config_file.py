from __future__ import annotations

from pathlib import Path

import pytest

from trimtab.guidance.config_file import read_config, to_yaml
from trimtab.guidance.errors import DataError
from trimtab.guidance.training.config import AdvantageConfig, OptimiserConfig, RewardConfig, TrainConfig


def read(tmp_path: Path, text: str) -> dict[str, object]:
    path = tmp_path / "run.yaml"
    path.write_text(text)
    return read_config(TrainConfig, path)


def test_a_written_configuration_is_read_back_as_it_was(tmp_path: Path):
    config = TrainConfig(
        name="k",
        model="some/model",
        head_folder=Path("h"),
        run_folder=Path("r"),
        preferences=Path("pairs.jsonl"),
        parts=("advantage", "reward"),
        advantage=AdvantageConfig(tau=1e-5, optimiser=OptimiserConfig(learning_rate=3e-4)),
        save_every=3,
        resume=True,
    )
    assert TrainConfig(**read(tmp_path, to_yaml(config))) == config


def test_what_a_file_leaves_out_keeps_its_default(tmp_path: Path):
    found = read(tmp_path, "name: k\nreward: {optimiser: {batch_size: 4}}\n")
    default = RewardConfig().optimiser
    assert found == {
        "name": "k",
        "reward": RewardConfig(optimiser=OptimiserConfig(default.epochs, 4, default.learning_rate)),
    }
    assert read(tmp_path, "") == {}


def test_numbers_may_be_written_with_a_bare_exponent(tmp_path: Path):
    """YAML 1.1 reads 1e-3 as a string."""
    found = read(tmp_path, "value: {optimiser: {learning_rate: 1e-3}}")
    assert found["value"].optimiser.learning_rate == 0.001


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("nme: k", "unknown key nme, known are name, model"),
        ("advantage: {tu: 1}", "unknown key advantage.tu, known are form, rank"),
        ("reward: {optimiser: {rate: 1}}", "unknown key reward.optimiser.rate, known are epochs"),
        ("advantage: {tau: much}", "advantage.tau must be a number, got 'much'"),
        ("advantage: {tau: -1}", "advantage: tau must be above 0"),
        ("advantage: {form: wide}", "advantage.form must be one of tied, lowrank, got 'wide'"),
        ("advantage: 3", "advantage must hold a mapping, got 3"),
        ("parts: reward", "parts must be a list, each one of reward, value, advantage"),
        ("seed: 1.5", "seed must be a whole number, got 1.5"),
        ("resume: 1", "resume must be true or false, got 1"),
        ("preferences: [a]", "preferences must be a path or nothing"),
        ("- 1", "must hold a mapping"),
        ("a: [", "is not YAML"),
    ],
)
def test_what_a_file_may_not_hold_is_named_in_one_line(tmp_path: Path, text: str, named: str):
    with pytest.raises(DataError) as caught:
        read(tmp_path, text)
    assert named in str(caught.value)
    assert str(caught.value).startswith(str(tmp_path / "run.yaml"))
    assert "\n" not in str(caught.value)


def test_a_file_that_is_not_there_is_named(tmp_path: Path):
    with pytest.raises(DataError, match=r"absent\.yaml: cannot be read"):
        read_config(TrainConfig, tmp_path / "absent.yaml")
