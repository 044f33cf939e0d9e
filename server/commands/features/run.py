"""Feature extraction: runs rows' replies through an engine's runner into a feature store."""

from __future__ import annotations

from dataclasses import replace

from trimtab.guidance.data.formats.registry import AUTO
from trimtab.guidance.data.items import load_items
from trimtab.guidance.data.row_files.source import check_source
from trimtab.guidance.errors import ModelError, UserError
from trimtab.guidance.features.layout import FeatureManifest, FeaturePlan
from trimtab.guidance.features.store import check_destination, remove_features, write_features
from trimtab.guidance.policy import Policy
from trimtab.guidance.text.encoding import EncodedReply
from trimtab.guidance.text.prompt_form import form_of
from trimtab.server.commands.features.config import FeaturesConfig
from trimtab.server.commands.work_size import plan_by_work
from trimtab.server.engine.extract import RunnerExtract


def run(config: FeaturesConfig, policy: Policy | None = None) -> FeatureManifest:
    """policy: the model, where it is loaded already.

    Raises UserError, DataError or PolicyError with one line; shards written before stay whole."""
    check_destination(config.out, resume=config.resume or config.overwrite)
    for path in config.files.values():
        check_source(path)
    try:
        extract = RunnerExtract.from_config(config.engine, policy)
    except ModelError as error:
        raise UserError(str(error)) from error
    replies = load_replies(config, extract)
    plan = plan_by_work(replies, config.position_choice(), extract.policy)
    print(describe(plan, config), flush=True)
    if config.overwrite:
        remove_features(config.out)
    manifest = write_features(
        config.out,
        plan,
        extract.policy.identity.base_model,
        extract,
        resume=config.resume,
        show_progress=config.show_progress,
    )
    data = [f"--{kind} {path}" for kind, path in config.files.items()]
    asked = {"format": config.row_options.format, "columns": config.row_options.columns}
    data += [f"--{name} {value}" for name, value in asked.items() if value not in ("", AUTO)]
    told = f"trimtab train --model {config.engine.model} {' '.join(data)} --features {config.out} …"
    print(f"train on them with: {told}")
    return manifest


def load_replies(config: FeaturesConfig, extract: RunnerExtract) -> list[EncodedReply]:
    """Every reply that training on these files asks for; bad and over-long rows as in training."""
    policy, limits = extract.policy, config.row_options
    rows = form_of(policy.tokenizer, limits.rows, config.files.values())
    limits = replace(limits, max_tokens=min(limits.max_tokens, policy.max_model_len), rows=rows)
    replies: list[EncodedReply] = []
    for kind, path in config.files.items():
        mismatched = config.mismatched and kind == "unpaired"
        for item in load_items(kind, path, limits, policy.frozen, mismatched=mismatched):
            replies.extend(item.replies)
    return replies


def describe(plan: FeaturePlan, config: FeaturesConfig) -> str:
    """How large it will be."""
    dtype, num_shards = str(plan.dtype).removeprefix("torch."), len(plan.shards)
    return (
        f"{plan.num_replies} replies, {plan.num_positions} positions ({plan.choice}) of {plan.hidden_size} "
        f"numbers in {dtype}: {_size(plan.num_bytes)} in {num_shards} shard{'s' * (num_shards > 1)} "
        f"under {config.out}"
    )


def _size(num_bytes: int) -> str:
    power = next(power for power in (4, 3, 2, 1, 0) if num_bytes >= 1000**power or power == 0)
    return f"{num_bytes / 1000**power:.3g} {('bytes', 'kB', 'MB', 'GB', 'TB')[power]}"
