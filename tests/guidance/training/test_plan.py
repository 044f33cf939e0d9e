from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from trimtab.guidance.errors import DataError
from trimtab.guidance.training.config import (
    AdvantageConfig,
    OptimiserConfig,
    RewardConfig,
    TrainConfig,
    ValueConfig,
)
from trimtab.guidance.training.methods import METHODS
from trimtab.guidance.training.plan import make_plan

PAIRS, ROLLOUTS = Path("pairs.jsonl"), Path("rollouts.jsonl")
UNPAIRED, RANKINGS = Path("unpaired.jsonl"), Path("rankings.jsonl")


@pytest.fixture(autouse=True)
def _files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in (PAIRS, ROLLOUTS, UNPAIRED, RANKINGS):
        name.touch()


def config(**settings: Any) -> TrainConfig:
    return TrainConfig(name="k", model="m", head_folder=Path("h"), run_folder=Path("r"), **settings)


def test_parts_are_trained_in_the_order_of_their_needs():
    plan = make_plan(config(parts=("advantage", "value", "reward"), preferences=PAIRS))
    assert list(plan) == ["reward", "value", "advantage"]
    assert plan["advantage"] is METHODS["advantage"]["dpo"]


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"parts": ("advantage",)}, "advantage.loss=dpo needs --preferences"),
        (
            {"parts": ("advantage",), "preferences": PAIRS, "advantage": AdvantageConfig(loss="kto")},
            "advantage.loss=kto needs --unpaired",
        ),
        ({"rollouts": ROLLOUTS}, "reward.loss=bradley_terry needs --preferences"),
        (
            {"parts": ("advantage",), "preferences": PAIRS, "advantage": AdvantageConfig(loss="cd_q")},
            "advantage.loss=cd_q needs --rollouts",
        ),
        ({"parts": ("value",)}, "value.loss=monte_carlo needs --rollouts"),
        (
            {"parts": ("advantage",), "rollouts": ROLLOUTS, "advantage": AdvantageConfig(loss="distil")},
            "advantage.loss=distil needs the head to have a value",
        ),
        (
            {"parts": ("reward",), "preferences": PAIRS, "unpaired": UNPAIRED},
            "--unpaired is read by no part of this run: leave it out, or give reward.loss=good_bad or",
        ),
        (
            {"preferences": PAIRS, "advantage": AdvantageConfig(gamma=1.0)},
            "advantage.gamma is not read by advantage.loss=dpo",
        ),
        (
            {"preferences": PAIRS, "advantage": AdvantageConfig(flipped=0.1)},
            "advantage.flipped is not read by advantage.loss=dpo",
        ),
        (
            {"preferences": PAIRS, "value": ValueConfig(lam=0.5)},
            "value.lam is not read by value.loss=monte_carlo",
        ),
        (
            {"preferences": PAIRS, "reward": RewardConfig(optimiser=OptimiserConfig(epochs=9))},
            "reward.optimiser is not read by reward.form=linear: leave it out, or give --reward.form mlp",
        ),
        (
            {"preferences": PAIRS, "reward": RewardConfig(form="mlp", l2=0.1)},
            "reward.l2 is not read by reward.form=mlp: leave it out, or give --reward.form linear",
        ),
        (
            {
                "parts": ("advantage",),
                "prompts": PAIRS,
                "advantage": AdvantageConfig(loss="rloo", optimiser=OptimiserConfig(patience=1)),
            },
            "advantage.optimiser.patience is not read by advantage.loss=rloo",
        ),
        ({"preferences": Path("none.jsonl")}, "none.jsonl: no such file or folder: give --preferences one"),
    ],
)
def test_what_a_run_lacks_or_would_not_read_is_refused_by_name(settings: dict[str, Any], named: str):
    with pytest.raises(DataError) as caught:
        make_plan(config(**settings))
    assert named in str(caught.value)


def test_a_value_may_learn_from_the_replies_of_other_files():
    settings = {"parts": ("reward", "value"), "rankings": RANKINGS}
    assert make_plan(config(reward=RewardConfig(loss="ranked"), **settings)).keys() == {"reward", "value"}


@pytest.mark.parametrize(
    ("part", "loss"), [(part, loss) for part, methods in METHODS.items() for loss in methods]
)
def test_every_option_of_a_method_is_a_field_of_its_parts_configuration(part: Any, loss: str):
    fields = vars(getattr(config(preferences=PAIRS), part))
    assert set(METHODS[part][loss].loss.options) <= fields.keys()
