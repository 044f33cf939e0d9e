"""What an on-policy run cannot be asked: told before any work."""

from __future__ import annotations

import dataclasses

from trimtab.guidance.errors import DataError
from trimtab.guidance.training.config import TrainConfig
from trimtab.guidance.training.on_policy.config import READS, OnPolicyConfig
from trimtab.guidance.training.processes import num_processes


def samples_replies(config: TrainConfig) -> bool:
    """Whether the run learns from replies that are sampled meanwhile."""
    return "advantage" in config.parts and config.advantage.loss in READS


def check_on_policy(config: TrainConfig, *, has_reward: bool) -> None:
    """has_reward: the head has a reward part, of this run or before.

    Raises:
        DataError: an option that this run does not read; nothing to score replies; batches that do not make
            an iteration.
    """
    if not samples_replies(config):
        _refuse_options(config, (), "this run, which samples no replies")
        return
    settings, loss = config.on_policy, config.advantage.loss
    general = [name for name in _names() if not any(name in reads for reads in READS.values())]
    _refuse_options(config, (*general, *READS[loss]), f"advantage.loss={loss}")
    if not settings.score and not has_reward:
        raise DataError(
            f"advantage.loss={loss} needs something to score replies: give --on-policy.score, or add reward "
            "to --parts"
        )
    if settings.start_strength is not None and config.start_from is None:
        raise DataError("on_policy.start_strength is of the head that --start-from names: give one, or none")
    if loss in ("rloo", "grpo") and settings.num_replies < 2:
        raise DataError(f"advantage.loss={loss} compares replies: give --on-policy.num-replies 2 or more")
    step = replies_per_step(config)
    if settings.num_samples % step:
        raise DataError(
            f"{settings.num_samples} replies of an iteration (on_policy.num_prompts · num_replies) make no "
            f"whole number of steps of {step} (batch_size · gradient_accumulation · processes): give another "
            "--advantage.optimiser.batch-size"
        )
    if config.features is not None and config.rollouts is None:
        raise DataError(f"advantage.loss={loss} samples replies that --features does not hold: leave it out")


def replies_per_step(config: TrainConfig) -> int:
    """Of all processes together."""
    return config.advantage.optimiser.batch_size * config.gradient_accumulation * num_processes()


def _names() -> list[str]:
    return [field.name for field in dataclasses.fields(OnPolicyConfig)]


def _refuse_options(config: TrainConfig, read: tuple[str, ...], reader: str) -> None:
    default = OnPolicyConfig()
    for name in _names():
        if name not in read and getattr(config.on_policy, name) != getattr(default, name):
            raise DataError(f"on_policy.{name} is not read by {reader}: leave it out")
