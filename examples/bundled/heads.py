"""The three bundled heads, by the trainer that users have."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from examples.bundled.rollouts import AXES
from trimtab.guidance.features.source import FeatureCache
from trimtab.guidance.policy import load_policy
from trimtab.guidance.training.config import AdvantageConfig, TrainConfig
from trimtab.guidance.training.train_head import train_head

# With labels smoothed by `flipped`, the chosen reply's log-ratio is to exceed the rejected one's by
# log(1/flipped − 1) / tau nats and by no more, however easily the two are told apart: a tilt that stays mild.
ADVANTAGES: Mapping[str, AdvantageConfig] = {
    "kind": AdvantageConfig(loss="conservative_dpo", tau=1.0, flipped=0.1),
    "concise": AdvantageConfig(loss="conservative_dpo", tau=1.0, flipped=0.15),
    "harmless": AdvantageConfig(loss="conservative_dpo", tau=1.0, flipped=0.1),
}


def train_heads(model: Path, work: Path, out: Path, seed: int) -> dict[str, Any]:
    """Trains a head for every axis on its preferences in `work`, on one cache of features; returns their
    held-out metrics."""
    cache = FeatureCache(load_policy(model, device="cpu"))
    return {
        head: dict(
            train_head(
                TrainConfig(
                    name=head,
                    model=model,
                    preferences=work / f"{head}.jsonl",
                    rollouts=work / "rollouts.jsonl",
                    head_folder=out / head,
                    run_folder=work / "runs" / head,
                    advantage=ADVANTAGES[head],
                    trained_on="preferences over the policy's own replies, by the bundled judge",
                    seed=seed,
                    device="cpu",
                ),
                features=cache,
            ).metrics
        )
        for head in AXES
    }
