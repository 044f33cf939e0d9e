"""How long training is said to take: by hand, from a clock that says a second of everything."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from tiny_models import SIZES, save_random_model
from transformers import LlamaConfig

from trimtab.guidance.policy import load_policy
from trimtab.guidance.training.config import AdvantageConfig, OptimiserConfig, TrainConfig, ValueConfig
from trimtab.server.commands.fit import rehearsal
from trimtab.server.commands.fit.rehearsal import TrainingSize, rehearse

OPTIMISER = OptimiserConfig(epochs=4, batch_size=10)
ADVANTAGE = AdvantageConfig(form="lowrank", rank=4, loss="monte_carlo", optimiser=OPTIMISER)
SIZE = TrainingSize(rollouts=100, rollout_tokens=7, pairs=20, pair_tokens=5)


@pytest.fixture
def seconds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """What a run with these parts is said to take."""

    def a_second(work) -> float:
        work()
        return 1.0

    monkeypatch.setattr(rehearsal, "_seconds", a_second)
    policy = load_policy(save_random_model(LlamaConfig(**SIZES), tmp_path / "tiny"))
    config = TrainConfig(
        name="x",
        model="m",
        head_folder=Path("heads"),
        run_folder=Path("runs"),
        parts=("value", "advantage"),
        rollouts=Path("not there yet"),
        preferences=Path("not there yet"),
        value=ValueConfig(width=8, optimiser=OPTIMISER),
        held_out=0.1,
    )
    return lambda **options: rehearse(replace(config, **options), policy, SIZE)


def test_a_run_of_rollouts(seconds):
    """Eight rows were rehearsed in a second, so that one takes 1/8: 90 rows once and four times, nine updates
    in each epoch, and 10 held-out rows six times; then a search on 10 · 7 positions, of which 64 take 1 s."""
    part = 90 / 8 + 4 * (90 / 8 + 9) + 6 * 10 / 8
    before = torch.get_rng_state()
    assert seconds(advantage=ADVANTAGE, preferences=None) == pytest.approx(2 * part + 70 / 64)
    assert torch.equal(before, torch.get_rng_state())


def test_a_run_of_pairs(seconds):
    """18 pairs and two held out; a linear reward is solved, and counts for nothing."""
    pairs = 18 / 8 + 4 * (18 / 8 + 2) + 6 * 2 / 8
    advantage = replace(ADVANTAGE, loss="dpo", shortlist=4)
    found = seconds(parts=("reward", "advantage"), advantage=advantage)
    assert found == pytest.approx(pairs + 70 / 64)
