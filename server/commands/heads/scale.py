"""Scale of a head that is there: fits it anew, with the model that it belongs to."""

from __future__ import annotations

import dataclasses

from trimtab.guidance.data.items import load_items
from trimtab.guidance.data.plain_rollouts import plain_only
from trimtab.guidance.errors import DataError, HeadError
from trimtab.guidance.features.source import FeatureCache
from trimtab.guidance.heads.manifest import AdvantagePart, Manifest
from trimtab.guidance.heads.store import load_head, save_head
from trimtab.guidance.policy import load_policy
from trimtab.guidance.text.prompt_form import form_of, mismatch
from trimtab.guidance.training.methods import METHODS
from trimtab.guidance.training.scale import KL_PER_TOKEN, Scale, fit_scale
from trimtab.server.commands.heads.config import RescaleConfig
from trimtab.server.commands.model import find_head_folder


def rescale(config: RescaleConfig) -> None:
    """Writes the head with its new scale. Raises HeadError, PolicyError or DataError."""
    folder, out = find_head_folder(config.head), config.out or find_head_folder(config.head)
    if not config.rollouts.exists():
        raise DataError(f"{config.rollouts}: no such file or folder")
    policy = load_policy(config.model, device=config.device)
    head, manifest = load_head(folder, policy.identity, device=policy.device)
    part = manifest.parts.advantage
    if head.advantage is None or part is None:
        raise HeadError(f"{folder}: head {manifest.name} has no advantage, and steers nothing: name another")
    form = form_of(policy.tokenizer, config.row_options.rows, [config.rollouts])
    if (problem := mismatch(manifest.name, manifest.rows, form)) is not None:
        print(problem)
    items = load_items("rollouts", config.rollouts, config.row_options, policy)
    plain = plain_only(
        items, config.rollouts, "a head's scale", skip=config.row_options.on_bad_rows == "skip"
    )
    replies = [item.reply for item in plain]
    method = METHODS["advantage"].get(part.loss)
    is_tilt = method is not None and method.is_tilt
    features = FeatureCache(policy, show_progress=config.show_progress)
    found = fit_scale(head.advantage, features, replies, is_tilt=is_tilt)
    if found.is_weak:
        raise HeadError(
            f"{folder}: its advantage is too weak to spend {KL_PER_TOKEN:g} nats a token: train it"
        )
    try:
        save_head(out, head, _with_scale(manifest, part, found, is_tilt=is_tilt))
    except OSError as error:
        raise HeadError(f"{out} cannot be written ({error.strerror or error}): name another --out") from error
    print(f"head {manifest.name}: scale {part.scale:.4g} → {found.scale:.4g}, written to {out}")


def _with_scale(manifest: Manifest, part: AdvantagePart, found: Scale, *, is_tilt: bool) -> Manifest:
    """value_per_advantage is per unit of the scaled advantage, and changes with it."""
    slope = part.value_per_advantage
    part = dataclasses.replace(
        part,
        scale=found.scale,
        kl_per_token=max(found.kl_per_token, 0.0),
        optimum=1 / found.scale if is_tilt else None,
        value_per_advantage=None if slope is None else slope * part.scale / found.scale,
    )
    metrics = {name: figure for name, figure in manifest.metrics.items() if name != "kl_per_token"}
    parts = dataclasses.replace(manifest.parts, advantage=part)
    return dataclasses.replace(manifest, parts=parts, metrics=metrics)
