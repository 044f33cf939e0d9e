"""Toy model, built from a seed: the policy, its heads, and what they are measured to do: make toy

The one recipe behind every file under examples/toy/built.
"""

from __future__ import annotations

import dataclasses
import json
import logging
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from examples.toy import HOME
from examples.toy.figures import FiguresConfig, measure
from examples.toy.policy import PolicyConfig, train_policy
from examples.toy.rollouts import AXES, RolloutConfig, sample_rollouts
from trimtab.guidance.errors import told_in_one_line
from trimtab.guidance.features.source import FeatureCache
from trimtab.guidance.files import write_json
from trimtab.guidance.policy import load_policy
from trimtab.guidance.training.config import AdvantageConfig, TrainConfig
from trimtab.guidance.training.train_head import train_head
from trimtab.server.flags import parse

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
                    trained_on="preferences over the policy's own replies, by the toy's judge",
                    seed=seed,
                    device="cpu",
                ),
                features=cache,
            ).metrics
        )
        for head in AXES
    }


Stage = Literal["policy", "rollouts", "heads", "figures"]
STAGES: tuple[Stage, ...] = ("policy", "rollouts", "heads", "figures")


@dataclass(frozen=True)
class ToyConfig:
    """Builds the toy model in four stages, each from what the one before it wrote: `policy` trains the
    language model on generated conversations, `rollouts` samples and judges its replies, `heads` trains the
    three heads on preferences among them, `figures` measures the heads on topics that nobody trained on.

    stages: which to run, in this order; one that is left out uses what an earlier run wrote.
    out: where model, heads and figures go.
    work: where rollouts, preferences and checkpoints go.
    seed: of everything that is drawn.
    """

    stages: tuple[Stage, ...] = STAGES
    out: Path = HOME
    work: Path = Path("runs/toy")
    seed: int = 0
    policy: PolicyConfig = field(default_factory=PolicyConfig)
    rollouts: RolloutConfig = field(default_factory=RolloutConfig)
    figures: FiguresConfig = field(default_factory=FiguresConfig)


def main(args: list[str] | None = None) -> None:
    with told_in_one_line("toy"):
        run(parse(ToyConfig, "make toy", sys.argv[1:] if args is None else args))


def run(config: ToyConfig) -> None:
    """Stage by stage. Raises DataError for files that are not there."""
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    logging.getLogger("trimtab").setLevel(logging.INFO)
    for stage in STAGES:
        if stage in config.stages:
            started = time.monotonic()
            _record(config, stage, _RUN[stage](config))
            print(f"{stage}: {time.monotonic() - started:.0f} s", flush=True)


def _policy(config: ToyConfig) -> object:
    report = train_policy(config.policy, config.out / "model", config.seed)
    return dataclasses.asdict(report)


def _rollouts(config: ToyConfig) -> object:
    return sample_rollouts(config.rollouts, config.out / "model", config.work, config.seed)


def _heads(config: ToyConfig) -> object:
    return train_heads(config.out / "model", config.work, config.out / "heads", config.seed)


def _figures(config: ToyConfig) -> object:
    return measure(config.figures, config.out, config.seed)


_RUN: Mapping[Stage, Callable[[ToyConfig], object]] = {
    "policy": _policy,
    "rollouts": _rollouts,
    "heads": _heads,
    "figures": _figures,
}


def _record(config: ToyConfig, stage: Stage, result: object) -> None:
    """Puts a stage's result into figures.json, beside those of the stages before it."""
    path = config.out / "figures.json"
    figures = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    kept = {name: figures[name] for name in STAGES[: STAGES.index(stage)] if name in figures}
    write_json(path, {**kept, stage: result})


if __name__ == "__main__":
    main()
