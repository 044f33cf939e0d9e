"""The three bundled heads, by the trainer that users have."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from trimtab.guidance.features import FeatureCache
from trimtab.guidance.policy import load_policy
from trimtab.guidance.train_config import AdvantageConfig, TrainConfig
from trimtab.guidance.trainer import train_head
from trimtab.server.bundled_rollouts import AXES

# Easier to tell apart, harder to steer gently: a larger tau keeps the tilt mild at strength 1.
TAU: Mapping[str, float] = {"kind": 0.3, "concise": 4.0, "harmless": 1.0}


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
                    advantage=AdvantageConfig(tau=TAU[head]),
                    trained_on="preferences over the policy's own replies, by the bundled judge",
                    seed=seed,
                    device="cpu",
                ),
                cache=cache,
            ).metrics
        )
        for head in AXES
    }
