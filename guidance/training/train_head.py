"""Trains a head: reward, then value, then advantage, each on features of the frozen policy."""

from __future__ import annotations

import dataclasses
import json
import logging
from collections.abc import Sequence
from pathlib import Path

import torch
import yaml
from safetensors import SafetensorError

from trimtab.guidance.config_file import to_yaml
from trimtab.guidance.data.input_files import INPUTS_FILE, check_inputs
from trimtab.guidance.data.items import RolloutItem
from trimtab.guidance.data.plain_rollouts import plain_only
from trimtab.guidance.data.row_files.source import files_of as row_files
from trimtab.guidance.errors import DataError, HeadError
from trimtab.guidance.features.source import Extract, FeatureCache, FeatureSource, StreamedFeatures
from trimtab.guidance.features.store import open_features
from trimtab.guidance.files import write_text
from trimtab.guidance.heads.forms import Advantage, Head, LinearScalar
from trimtab.guidance.heads.manifest import AdvantagePart, Manifest, Parts
from trimtab.guidance.heads.store import check_destination, load_head, save_head
from trimtab.guidance.heads.verdict import verdicts
from trimtab.guidance.policy import Policy, load_policy
from trimtab.guidance.text.prompt_form import mismatch
from trimtab.guidance.training.config import PartName, TrainConfig
from trimtab.guidance.training.convex_reward import solve_reward
from trimtab.guidance.training.examples import Examples, Split, files_of, load_examples, rows_of
from trimtab.guidance.training.figures import (
    Figures,
    HeldOutLoss,
    Validation,
    choose_validation,
    loss_figures,
    stopping_figures,
)
from trimtab.guidance.training.held_out import reads_columns, reward_rollouts
from trimtab.guidance.training.learning_curve import draw_learning_curves
from trimtab.guidance.training.loop import train_part
from trimtab.guidance.training.manifest import Measured, make_manifest
from trimtab.guidance.training.methods import Method
from trimtab.guidance.training.on_policy.collect import ReplyWriter
from trimtab.guidance.training.on_policy.run import Outcome, train_on_policy
from trimtab.guidance.training.plan import Plan, make_plan
from trimtab.guidance.training.processes import is_first, own_device

logger = logging.getLogger(__name__)
CONFIG_FILE = "train_config.yaml"
_FREE = {"resume", "show_progress", "head_folder", "log_every", "save_every", "report_to", "trained_on"}


def train_head(
    config: TrainConfig,
    *,
    policy: Policy | None = None,
    features: FeatureSource | None = None,
    extract: Extract | None = None,
    writer: ReplyWriter | None = None,
) -> Manifest:
    """Trains parts of a head, measures it on held-out prompts, and writes the head's folder.

    policy, features: hand these over to train several heads on one policy; the features must be the policy's.
    extract: what runs the policy where features are not given.
    writer: writes the replies that on-policy losses learn from.

    Raises:
        DataError, PolicyError, HeadError: one line that names the thing and the fix.
    """
    plan = make_plan(config)
    check_destination(config.head_folder)
    if policy is None:
        policy = (
            features.policy
            if features
            else load_policy(config.model, device=own_device(config.device), dtype=config.dtype)
        )
    if features is None:
        features = _make_features(config, policy, extract)
    config = dataclasses.replace(config, rows=rows_of(config, policy))
    _write_config(config)
    examples = load_examples(config, policy, None if writer is None else writer.reads)
    _check_labels(config, plan, examples)
    examples = _plain_where_needed(examples, config, plan)
    features.prepare(examples.replies())
    head, parts, units = _begin(config, policy, plan)
    _check_units(config, parts, examples)
    validation = choose_validation(examples.held_out(), config.seed)
    figures: Figures = {}
    for part, method in plan.items():
        logger.info("%s: %s by %s", config.name, part, getattr(config, part).loss)
        if method.rows == "prompts":
            streamed = StreamedFeatures(policy, extract)
            outcome = train_on_policy(method, head, examples.prompts, streamed, writer, config)
            examples, figures = _with_plain(examples, outcome, config), figures | outcome.figures
        else:
            figures |= _train(part, method, head, examples, features, config, validation)
    rollouts = _held_out_rollouts(head, examples, features, config, plan)
    stopped = {part: validation for part in plan if f"{part}_best_epoch" in figures}
    measured = Measured(head, parts, config, features, examples, rollouts, stopped)
    manifest = make_manifest(measured, plan, units)
    manifest = dataclasses.replace(manifest, metrics={**manifest.metrics, **figures}, rows=config.rows)
    if is_first():
        _save(config.head_folder, head, manifest)
        draw_learning_curves(config.run_folder)
    _tell(config, manifest, plan)
    return manifest


def _check_labels(config: TrainConfig, plan: Plan, examples: Examples) -> None:
    """Raises DataError where a loss that tells good replies from bad ones would see only one side."""
    labels = {item.label for item in examples.unpaired.train}
    losses = [getattr(config, part).loss for part, method in plan.items() if method.rows == "unpaired"]
    if losses and len(labels) == 1:
        raise DataError(
            f"{config.unpaired}: all labels that are trained on are {str(*labels).lower()}: "
            f"{' and '.join(losses)} learns from both, give rows of the other side too"
        )


def _with_plain(examples: Examples, outcome: Outcome, config: TrainConfig) -> Examples:
    """The policy's replies that were sampled while training serve as rollouts, where no file holds any."""
    if config.rollouts is not None:
        return examples
    rollouts = dataclasses.replace(examples.rollouts, held_out=tuple(outcome.rollouts))
    return dataclasses.replace(examples, rollouts=rollouts)


def _plain_where_needed(examples: Examples, config: TrainConfig, plan: Plan) -> Examples:
    """Without rollouts that the policy alone would not have written, unless all that reads them is a reward
    that learns what a reply is worth, whoever wrote it. Raises DataError; see plain_only."""
    readers = [part for part, method in plan.items() if method.rows == "rollouts"]
    if config.rollouts is None or (
        readers == list(plan)
        and not any(plan[part].needs_plain for part in readers)
        and config.start_from is None
    ):
        return examples
    needy = [f"{part}.loss={getattr(config, part).loss}" for part in readers if plan[part].needs_plain]
    reader, both = " and ".join(needy) or "a head's scale and standard units", examples.rollouts
    learns = config.steered == "learn"
    unsteered = [i for side in (both.train, both.held_out) for i in side if not (learns and i.is_steered)]
    plain_only(unsteered, config.rollouts, reader, skip=config.on_bad_rows == "skip")
    train, held_out = (
        tuple(i for i in side if not i.departure or (learns and i.is_steered))
        for side in (both.train, both.held_out)
    )
    if not train or all(item.departure for item in held_out):
        raise DataError(
            f"{config.rollouts}: no plain rollouts are left to train on, or to judge by: give more"
        )
    return dataclasses.replace(examples, rollouts=Split(train, held_out))


def _make_features(config: TrainConfig, policy: Policy, extract: Extract | None) -> FeatureSource:
    if config.features is not None:
        return open_features(config.features, policy)
    if config.stream:
        return StreamedFeatures(policy, extract)
    return FeatureCache(policy, extract, show_progress=config.show_progress and is_first())


def _write_config(config: TrainConfig) -> None:
    """Writes the resolved configuration; a run that resumes must have been configured alike."""
    path = config.run_folder / CONFIG_FILE
    if config.resume and path.is_file():
        before, now = (yaml.safe_load(text) for text in (path.read_text(encoding="utf-8"), to_yaml(config)))
        changed = sorted(key for key in now if key not in _FREE and before.get(key) != now[key])
        if changed:
            raise DataError(f"{path}: was run with another {changed[0]}: restore it, or start without resume")
    elif is_first():
        (config.run_folder / INPUTS_FILE).unlink(missing_ok=True)
    if is_first():
        inputs = {name: (given, row_files(given)) for name, given in files_of(config).items()}
        check_inputs(config.run_folder, inputs, "start without resume")
        write_text(path, to_yaml(config))


def _begin(config: TrainConfig, policy: Policy, plan: Plan) -> tuple[Head, Parts, tuple[float, float]]:
    """The head as it is before training, what it is made of, and its units so far."""
    identity = policy.identity
    own = {part: getattr(config, part).part() for part in config.parts}
    if config.start_from is None:
        torch.manual_seed(config.seed)
        parts = Parts(**own)
        return Head(parts, identity.hidden_size, identity.vocab_size).to(policy.device), parts, (0.0, 1.0)
    head, stored = load_head(config.start_from, identity, device=policy.device)
    if (problem := mismatch(stored.name, stored.rows, config.rows)) is not None:
        logger.warning("%s", problem)
    for part in config.parts:
        _check_form(config.start_from, part, getattr(stored.parts, part), own[part])
    parts = dataclasses.replace(stored.parts, **own)
    torch.manual_seed(config.seed)
    begun = Head(parts, identity.hidden_size, identity.vocab_size)
    begun.load_state_dict(begun.state_dict() | head.state_dict())
    if begun.advantage is not None and "advantage" in plan and plan["advantage"].is_tilt:
        _fold(begun.advantage, stored.parts.advantage, config)
    return begun.to(policy.device), parts, (stored.reward_mean, stored.reward_std)


@torch.no_grad()
def _fold(advantage: Advantage, stored: AdvantagePart | None, config: TrainConfig) -> None:
    """A tilt is trained with its weights as they are: it begins at the strength that was its optimum, and one
    that had none at a unit of strength."""
    if stored is not None:
        strength = config.on_policy.start_strength
        if strength is None:
            strength = 1.0 if stored.optimum is None else stored.optimum
        advantage.up.mul_(stored.scale * strength)


def _check_form(folder: Path, part: str, stored: object, wanted: object) -> None:
    for name in ("form", "rank", "width", "activation", "units", "bins", "low", "high"):
        have, want = getattr(stored, name, None), getattr(wanted, name, None)
        if stored is not None and have != want:
            raise HeadError(
                f"{folder}: its {part} has {name} {have}, not {want}: give --{part}.{name} {have}"
            )


def _check_units(config: TrainConfig, parts: Parts, examples: Examples) -> None:
    """A head's reward and value speak the same units, or a reported number would mean two things."""
    own_columns = reads_columns(examples.rollouts.train, config)
    if parts.reward and "value" in config.parts and own_columns and parts.reward.loss != "regression":
        raise DataError(
            f"a reward by {parts.reward.loss} and a value of the rollouts' own rewards have different units: "
            "give --reward.loss regression or --reward-from head, or leave one of them out of --parts"
        )


def _train(
    part: PartName,
    method: Method,
    head: Head,
    examples: Examples,
    features: FeatureSource,
    config: TrainConfig,
    validation: Validation,
) -> Figures:
    """Its figures on held-out rows that had no say in its training."""
    own, folder = getattr(config, part), config.run_folder / part
    split = getattr(examples, method.rows)
    items, held_out = (
        _rewarded(part, side, head, features, config)
        if method.rows == "rollouts" and method.has_rewards
        else list(side)
        for side in (split.train, split.held_out)
    )
    objective, loss = method.objective(head, config, features), method.loss.bind(own)
    if isinstance(head.reward, LinearScalar) and part == "reward":
        fit = solve_reward(
            objective,
            head.reward,
            loss,
            items,
            l2=own.l2,
            folder=folder,
            seed=config.seed,
            resume=config.resume,
        )
        figures = {f"{part}_l2": fit.l2}
    else:
        stopping = validation.stopping(held_out)
        torch.manual_seed(config.seed)
        seen = train_part(
            objective,
            loss,
            items,
            folder=folder,
            optimiser=own.optimiser,
            config=config,
            device=features.policy.device,
            held_out=stopping,
        )
        figures = stopping_figures(part, seen, len(stopping), validation)
        held_out = validation.judging(held_out) if figures else held_out
    if not held_out:
        return figures
    judge = HeldOutLoss(objective, loss, held_out, own.optimiser.batch_size)
    return figures | loss_figures(part, judge, items)


def _tell(config: TrainConfig, manifest: Manifest, plan: Plan) -> None:
    """Whether anything was learned."""
    for part, verdict in verdicts(manifest.metrics).items():
        if part in plan:
            level = logging.INFO if verdict.has_learned else logging.WARNING
            logger.log(level, "%s: %s: %s", config.name, part, verdict)


def _rewarded(
    part: PartName,
    items: Sequence[RolloutItem],
    head: Head,
    features: FeatureSource,
    config: TrainConfig,
) -> list[RolloutItem]:
    """A reward that learns from rollouts learns their own rewards."""
    if part == "reward":
        config = dataclasses.replace(config, reward_from="columns")
    return reward_rollouts(items, head, features, config)


def _held_out_rollouts(
    head: Head, examples: Examples, features: FeatureSource, config: TrainConfig, plan: Plan
) -> list[RolloutItem]:
    """Those that measure a head: the policy's own, rewarded where anything can reward them."""
    items = examples.rollouts.held_out
    if config.steered == "learn":
        items = tuple(item for item in items if not item.departure)
    if head.reward is None and not reads_columns(items, config):
        return list(items)
    return reward_rollouts(items, head, features, config)


def _save(folder: Path, head: Head, manifest: Manifest) -> None:
    try:
        save_head(folder, head, manifest)
    except (OSError, SafetensorError) as error:
        raise HeadError(
            f"{folder} cannot be written ({error}): make room and resume, which trains nothing "
            "again; nothing half-written is left"
        ) from error
    logger.info("%s: %s", folder, json.dumps(dict(manifest.metrics)))
