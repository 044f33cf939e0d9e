"""Reward parts to and from classification models, with the model that they belong to."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import torch
from transformers import AutoConfig, PreTrainedModel

from trimtab.guidance.data.items import load_items
from trimtab.guidance.data.plain_rollouts import plain_only
from trimtab.guidance.errors import DataError
from trimtab.guidance.features.source import FeatureCache
from trimtab.guidance.heads.forms import Head, LinearScalar
from trimtab.guidance.heads.manifest import Manifest, load_manifest
from trimtab.guidance.heads.store import check_destination, load_head, save_head
from trimtab.guidance.locate import must_be_local
from trimtab.guidance.model_names import find_model, name_of
from trimtab.guidance.policy import Policy, load_policy
from trimtab.guidance.publish.card import render_export_card
from trimtab.guidance.publish.classifier import (
    as_classifier,
    as_head,
    check_empty,
    check_exportable,
    check_same,
    end_tokens,
    read_classifier,
    save_classifier,
    set_dtype,
    set_pad_token,
)
from trimtab.guidance.training.held_out import score_ends, standard_units
from trimtab.server.commands.heads.config import ExportRewardConfig, ImportRewardConfig
from trimtab.server.commands.model import find_head_folder


def export(config: ExportRewardConfig) -> None:
    """Writes the classification model. Raises HeadError or PolicyError."""
    folder = find_head_folder(config.head)
    check_empty(config.out)
    check_exportable(load_manifest(folder))
    policy = load_policy(config.model, device=config.device)
    head, manifest = load_head(folder, policy.identity, device=policy.device)
    pad_token_id = set_pad_token(policy.tokenizer, policy.model.get_input_embeddings().num_embeddings)
    model = as_classifier(head, manifest, policy, pad_token_id)
    check_same(model, head, policy)
    card = _card(model, manifest, policy, pad_token_id)
    set_dtype(model, head, _dtype(config, policy))
    save_classifier(model, policy.tokenizer, card, config.out)
    print(f"{type(model).__name__} with one label written to {config.out}; its README.md says how to read it")


def import_(config: ImportRewardConfig) -> None:
    """Writes the head. Raises HeadError, PolicyError or DataError."""
    check_destination(config.out)
    policy = load_policy(config.model, device=config.device)
    classifier = read_classifier(config.source, policy)
    trained_on = config.trained_on or f"imported from {name_of(config.source)}"
    head, manifest = as_head(classifier, policy, name=config.name, trained_on=trained_on)
    if config.rollouts is not None:
        manifest = _fit_units(config, config.rollouts, head, manifest, policy)
    save_head(config.out, head, manifest)
    units = f"mean {manifest.reward_mean:.4g}, standard deviation {manifest.reward_std:.4g}"
    print(f"head {manifest.name} with a reward ({units}) written to {config.out}")


def _fit_units(
    config: ImportRewardConfig, rollouts: Path, head: Head, manifest: Manifest, policy: Policy
) -> Manifest:
    if not rollouts.exists():
        raise DataError(f"{rollouts}: no such file or folder")
    items = load_items("rollouts", rollouts, config.row_options, policy)
    plain = plain_only(
        items, rollouts, "a head's standard units", skip=config.row_options.on_bad_rows == "skip"
    )
    replies = [item.reply for item in plain]
    features = FeatureCache(policy, show_progress=config.show_progress)
    assert isinstance(head.reward, LinearScalar)
    mean, std = standard_units(score_ends(head.reward.to(policy.device), features, replies))
    metrics = {"unit_rollouts": float(len(replies))}
    return dataclasses.replace(manifest, reward_mean=mean, reward_std=std, metrics=metrics)


def _dtype(config: ExportRewardConfig, policy: Policy) -> torch.dtype:
    if config.dtype != "auto":
        dtype: torch.dtype = getattr(torch, config.dtype)
        return dtype
    path = find_model(config.model)
    stored = AutoConfig.from_pretrained(
        path, local_files_only=must_be_local(path), trust_remote_code=False
    ).dtype
    return stored if isinstance(stored, torch.dtype) else policy.lm_head.dtype


def _card(model: PreTrainedModel, manifest: Manifest, policy: Policy, pad_token_id: int | None) -> str:
    tokenizer = policy.tokenizer
    return render_export_card(
        manifest,
        architecture=type(model).__name__,
        bias=model.config.trimtab_reward_bias,
        pad_token=None if pad_token_id is None else tokenizer.convert_ids_to_tokens(pad_token_id),
        ends=[tokenizer.convert_ids_to_tokens(index) for index in sorted(end_tokens(tokenizer))],
    )
