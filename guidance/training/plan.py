"""Plan of a run: the method of each part, in order; refuses what cannot be trained before any work."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import get_args

from trimtab.guidance.errors import DataError
from trimtab.guidance.heads.manifest import load_manifest
from trimtab.guidance.losses.policy_gradient import PROMPTS
from trimtab.guidance.training.config import OnPolicyConfig, OptimiserConfig, PartName, TrainConfig
from trimtab.guidance.training.examples import ITEMS_OF
from trimtab.guidance.training.methods import METHODS, Method
from trimtab.guidance.training.processes import num_processes

_SHAPE = ("form", "rank", "width", "activation", "units", "loss")
_READ_BY_FORM = {"l2": "linear", "optimiser": "mlp"}
"""Options of a reward: a linear one is solved, see convex_reward."""
_FILE_OF = {kind: file for file, kind in ITEMS_OF.items()}
Plan = Mapping[PartName, Method]


def make_plan(config: TrainConfig) -> Plan:
    """The method of each part, in the order of training: the reward rewards rollouts for the value, and some
    advantages read a value.

    Raises:
        DataError: a method is not known, needs a file or a part that is not given, or does not read an option
            or a file that is.
        HeadError: start_from cannot be read.
    """
    plan = methods_of(config)
    for part, method in plan.items():
        _check_options(config, part, method)
        _check_file(config, part, method)
        _check_patience(config, part, method)
    _check_needs(config, plan)
    _check_unread(config, plan)
    _check_steered(config, plan)
    _check_files_exist(config)
    _check_on_policy(config, has_reward="reward" in plan or _kept(config, "reward"))
    return plan


def methods_of(config: TrainConfig) -> Plan:
    """The plan, unchecked. Raises DataError where a method is not known."""
    return {part: _method(config, part) for part in get_args(PartName) if part in config.parts}


def samples_replies(config: TrainConfig) -> bool:
    """Whether the run learns from replies that are sampled meanwhile."""
    return "advantage" in config.parts and config.advantage.loss in PROMPTS


def replies_per_step(config: TrainConfig) -> int:
    """Of all processes together."""
    return config.advantage.optimiser.batch_size * config.gradient_accumulation * num_processes()


def _method(config: TrainConfig, part: PartName) -> Method:
    loss = getattr(config, part).loss
    if loss not in METHODS[part]:
        raise DataError(f"{part}.loss={loss} trains nothing, known are {', '.join(METHODS[part])}")
    return METHODS[part][loss]


def _check_options(config: TrainConfig, part: PartName, method: Method) -> None:
    """An option that the method does not read is left at its default."""
    chosen = getattr(config, part)
    for field in dataclasses.fields(chosen):
        if field.name in _SHAPE or getattr(chosen, field.name) == field.default:
            continue
        if part == "reward" and field.name in _READ_BY_FORM:
            if chosen.form != _READ_BY_FORM[field.name]:
                raise DataError(
                    f"{part}.{field.name} is not read by {part}.form={chosen.form}: leave it out, or give "
                    f"--{part}.form {_READ_BY_FORM[field.name]}"
                )
        elif field.name not in ("optimiser", *method.loss.options):
            raise DataError(f"{part}.{field.name} is not read by {part}.loss={chosen.loss}: leave it out")


def _check_patience(config: TrainConfig, part: PartName, method: Method) -> None:
    """Replies that are sampled meanwhile have no held-out loss; on_policy.max_kl is their guard."""
    patience, default = getattr(config, part).optimiser.patience, OptimiserConfig.patience
    if method.rows == "prompts" and patience != default:
        loss = getattr(config, part).loss
        raise DataError(f"{part}.optimiser.patience is not read by {part}.loss={loss}: leave it out")


def _check_file(config: TrainConfig, part: PartName, method: Method) -> None:
    file = _FILE_OF[method.rows]
    if getattr(config, file) is None and not _can_do_without(config, part, method):
        loss = getattr(config, part).loss
        raise DataError(f"{part}.loss={loss} needs --{file}: give it, or leave {part} out of --parts")


def _can_do_without(config: TrainConfig, part: PartName, method: Method) -> bool:
    """Whether the replies of other files may serve as rollouts: for a value, which only measures."""
    files = (config.preferences, config.rankings, config.unpaired)
    return part == "value" and method.rows == "rollouts" and any(file is not None for file in files)


def _kept(config: TrainConfig, part: PartName) -> bool:
    """Whether the head that the run starts from has the part."""
    return config.start_from is not None and getattr(load_manifest(config.start_from).parts, part) is not None


def _check_needs(config: TrainConfig, plan: Plan) -> None:
    for part, method in plan.items():
        for other in method.needs:
            if other not in plan and not _kept(config, other):
                loss = getattr(config, part).loss
                raise DataError(
                    f"{part}.loss={loss} needs the head to have a {other}: add {other} to --parts, or "
                    "--start-from a head that has one"
                )


def _check_files_exist(config: TrainConfig) -> None:
    for file in (*_FILE_OF.values(), "features"):
        path = getattr(config, file)
        if path is not None and not path.exists():
            raise DataError(f"{path}: no such file or folder: give --{file} one")


def _check_unread(config: TrainConfig, plan: Plan) -> None:
    """Rollouts are always read, since they set the head's units; other files by methods, or as rollouts."""
    read = {_FILE_OF[method.rows] for method in plan.values()} | {"rollouts"}
    if config.rollouts is None and any(method.rows == "rollouts" for method in plan.values()):
        return
    for file in _FILE_OF.values():
        if getattr(config, file) is not None and file not in read:
            losses = [
                f"{part}.loss={name}"
                for part, methods in METHODS.items()
                for name, method in methods.items()
                if method.rows == ITEMS_OF[file]
            ]
            raise DataError(
                f"--{file} is read by no part of this run: leave it out, or give {' or '.join(losses)}"
            )


def _check_steered(config: TrainConfig, plan: Plan) -> None:
    """Rollouts that heads steered tell what steering earns, and nothing of the policy's own forecasts."""
    if config.steered == "refuse":
        return
    for part, method in plan.items():
        if method.rows != "rollouts" or not (method.is_return or not method.needs_plain):
            losses = [f"{p}.loss={n}" for p, own in METHODS.items() for n, m in own.items() if m.is_return]
            raise DataError(
                f"{part}.loss={getattr(config, part).loss} cannot learn from steered rollouts: leave "
                f"--steered out, or give {' or '.join(losses)}"
            )


def _check_on_policy(config: TrainConfig, *, has_reward: bool) -> None:
    """has_reward: the head has a reward part, of this run or before.

    Raises:
        DataError: an option that this run does not read; nothing to score replies; batches that do not make
            an iteration.
    """
    if not samples_replies(config):
        _refuse_options(config, (), "this run, which samples no replies")
        return
    settings, loss = config.on_policy, config.advantage.loss
    formula = PROMPTS[loss]
    general = {*_on_policy_names()}.difference(*(other.on_policy for other in PROMPTS.values()))
    _refuse_options(config, (*general, *formula.on_policy), f"advantage.loss={loss}")
    if not settings.score and not has_reward:
        raise DataError(
            f"advantage.loss={loss} needs something to score replies: give --on-policy.score, or add reward "
            "to --parts"
        )
    if settings.start_strength is not None and config.start_from is None:
        raise DataError("on_policy.start_strength is of the head that --start-from names: give one, or none")
    if formula.compares and settings.num_replies < 2:
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


def _refuse_options(config: TrainConfig, read: tuple[str, ...], reader: str) -> None:
    default = OnPolicyConfig()
    for name in _on_policy_names():
        if name not in read and getattr(config.on_policy, name) != getattr(default, name):
            raise DataError(f"on_policy.{name} is not read by {reader}: leave it out")


def _on_policy_names() -> list[str]:
    return [field.name for field in dataclasses.fields(OnPolicyConfig)]
