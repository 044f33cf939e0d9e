"""Everything that decides a training run."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from trimtab.guidance.losses import ADVANTAGE_LOSSES, REWARD_LOSSES, VALUE_LOSSES, Loss
from trimtab.guidance.manifest import AdvantagePart, ScalarPart, check_name


def _check_positive(config: object, *names: str) -> None:
    for name in names:
        if not getattr(config, name) > 0:
            raise ValueError(f"{name} must be above 0, got {getattr(config, name)}")


def _check_loss(name: str, known: Mapping[str, Loss]) -> None:
    if name not in known:
        raise ValueError(f"loss must be one of {', '.join(known)}, got {name!r}")


@dataclass(frozen=True)
class OptimiserConfig:
    """batch_size: pairs, or rollouts."""

    epochs: float = 3.0
    batch_size: int = 32
    learning_rate: float = 1e-3
    weight_decay: float = 0.0
    warmup: float = 0.05

    def __post_init__(self) -> None:
        _check_positive(self, "epochs", "batch_size", "learning_rate")
        if self.weight_decay < 0 or not 0 <= self.warmup < 1:
            raise ValueError("weight_decay must be at least 0, and warmup (a share of all steps) in 0…1")


@dataclass(frozen=True)
class AdvantageConfig:
    """tau: KL temperature; a small one steers hard. flipped: the share of labels taken to be wrong.

    A low-rank form learns its vocabulary from zero: give it about five times a tied one's learning rate.
    """

    form: Literal["tied", "lowrank"] = "tied"
    rank: int = 64
    activation: Literal["identity", "silu"] = "silu"
    loss: str = "dpo"
    tau: float = 0.1
    flipped: float = 0.0
    optimiser: OptimiserConfig = field(default_factory=OptimiserConfig)

    def __post_init__(self) -> None:
        _check_positive(self, "rank", "tau")
        _check_loss(self.loss, ADVANTAGE_LOSSES)

    def part(self) -> AdvantagePart:
        return AdvantagePart(self.form, self.rank, self.activation, self.loss, self.tau)


@dataclass(frozen=True)
class RewardConfig:
    form: Literal["linear", "mlp"] = "linear"
    width: int = 256
    activation: Literal["identity", "silu"] = "silu"
    loss: str = "bradley_terry"
    margin: float = 0.0
    centring: float = 0.01
    optimiser: OptimiserConfig = OptimiserConfig(epochs=5.0, learning_rate=1e-2)

    def __post_init__(self) -> None:
        _check_positive(self, "width")
        _check_loss(self.loss, REWARD_LOSSES)

    def part(self) -> ScalarPart:
        return ScalarPart(self.form, self.width, self.activation, self.loss)


@dataclass(frozen=True)
class ValueConfig:
    form: Literal["linear", "mlp"] = "mlp"
    width: int = 256
    activation: Literal["identity", "silu"] = "silu"
    loss: str = "monte_carlo"
    optimiser: OptimiserConfig = field(default_factory=OptimiserConfig)

    def __post_init__(self) -> None:
        _check_positive(self, "width")
        _check_loss(self.loss, VALUE_LOSSES)

    def part(self) -> ScalarPart:
        return ScalarPart(self.form, self.width, self.activation, self.loss)


@dataclass(frozen=True)
class TrainConfig:
    """A head with all three parts, from preferences over the policy's own samples.

    name: of the head, a quality such as `kind`.
    model: the policy's folder or hub id.
    preferences: rows {prompt?, chosen, rejected} as JSONL, Parquet or a datasets folder.
    head_folder: where the head is written. run_folder: checkpoints and the resolved configuration.
    rollouts: rows {prompt, completion}, plain samples of the policy, that teach the value and set the
    standard units; without it the replies of `preferences` serve, whose spread their selection distorts.
    trained_on: one line for the manifest; by default it names the files and counts the rows.
    held_out: share of the prompts that is kept from training and judges it.
    max_tokens: rows whose prompt and reply are longer are left out, and counted.
    on_bad_rows: what a malformed row does.
    resume: go on from the checkpoints in run_folder.
    """

    name: str
    model: Path
    preferences: Path
    head_folder: Path
    run_folder: Path
    rollouts: Path | None = None
    trained_on: str = ""
    advantage: AdvantageConfig = field(default_factory=AdvantageConfig)
    reward: RewardConfig = field(default_factory=RewardConfig)
    value: ValueConfig = field(default_factory=ValueConfig)
    held_out: float = 0.1
    max_tokens: int = 1024
    on_bad_rows: Literal["refuse", "skip"] = "refuse"
    seed: int = 0
    device: str = "auto"
    resume: bool = False
    show_progress: bool = True

    def __post_init__(self) -> None:
        check_name(self.name)
        _check_positive(self, "max_tokens")
        if not 0 < self.held_out < 1:
            raise ValueError(f"held_out must be a share between 0 and 1, got {self.held_out}")

    def to_json(self) -> str:
        return json.dumps(dataclasses.asdict(self), indent=2, default=str) + "\n"
