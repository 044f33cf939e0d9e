"""Forecasts of a reply's gold by values of every form, on held-out prompts, by place in the reply."""

from __future__ import annotations

import sys
import time
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from trimtab.guidance.errors import told_in_one_line
from trimtab.guidance.features.source import FeatureCache, FeatureSource
from trimtab.guidance.files import write_json
from trimtab.guidance.heads.manifest import VALUE_FORMS, ValueForm
from trimtab.guidance.heads.store import load_head
from trimtab.guidance.policy import load_policy
from trimtab.guidance.training.config import OptimiserConfig, TrainConfig, ValueConfig
from trimtab.guidance.training.examples import load_examples
from trimtab.guidance.training.held_out import fetch_in_chunks, score_prefixes
from trimtab.guidance.training.objectives.rollouts import returns_of
from trimtab.guidance.training.train_head import train_head
from trimtab.server.flags import parse


@dataclass(frozen=True)
class ForecastConfig:
    """Trains a value of every form by several seeds on scored replies, and measures what it forecasts of the
    replies to held-out prompts.

    rollouts: scored replies. model: the policy's folder. late: tokens after which a place is late.
    """

    rollouts: Path
    model: Path = Path("../shared/models/stories656K")
    out: Path = Path("runs/gold/forecasts")
    seeds: tuple[int, ...] = (0, 1, 2)
    forms: tuple[ValueForm, ...] = VALUE_FORMS
    epochs: float = 2.0
    late: int = 120


def main(args: list[str] | None = None) -> None:
    with told_in_one_line("forecasts"):
        given = sys.argv[1:] if args is None else args
        run(parse(ForecastConfig, "python -m examples.gold.forecasts", given))


def run(config: ForecastConfig) -> None:
    features = FeatureCache(load_policy(config.model))
    for seed in config.seeds:
        for form in config.forms:
            found = measure(config, form, seed, features)
            write_json(config.out / f"{form}-{seed}.json", found)
            print(found, flush=True)


def measure(config: ForecastConfig, form: ValueForm, seed: int, features: FeatureSource) -> dict[str, object]:
    """r² over all places and over late ones of the held-out replies, and CPU seconds of training."""
    train = TrainConfig(
        name=f"{form}-{seed}",
        model=str(config.model),
        rollouts=config.rollouts,
        rows="text",
        parts=("value",),
        value=ValueConfig(form=form, optimiser=OptimiserConfig(epochs=config.epochs, patience=0)),
        seed=seed,
        head_folder=config.out / "heads" / f"{form}-{seed}",
        run_folder=config.out / "runs" / f"{form}-{seed}",
    )
    items = load_examples(train, features.policy).rollouts.held_out
    features.prepare([item.reply for item in items])
    began = time.process_time()
    train_head(train, features=features)
    spent = time.process_time() - began
    value = load_head(train.head_folder, features.policy.identity)[0].value
    assert value is not None
    values = score_prefixes(value, fetch_in_chunks(features, [item.reply for item in items]))
    returns = [returns_of(item, 1.0) for item in items]
    late = [(v[config.late :], g[config.late :]) for v, g in zip(values, returns, strict=True)]
    return {
        "form": form,
        "seed": seed,
        "r2": explained(torch.cat(values), torch.cat(returns)),
        "r2_late": explained(*(torch.cat(column) for column in zip(*late, strict=True))),
        "held_out_replies": len(items),
        "cpu_seconds": spent,
    }


def explained(values: Tensor, returns: Tensor) -> float:
    """1 − E(V − G)² / Var G."""
    return (1 - (values - returns).square().mean() / returns.var(correction=0)).item()


if __name__ == "__main__":
    main()
