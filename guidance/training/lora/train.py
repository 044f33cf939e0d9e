"""Adapters of the policy (LoRA): trains one by TRL on the tokens that a head would learn from, and merges it
into plain model folders."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import datasets
import torch
from peft import LoraConfig as PeftLoraConfig
from peft import PeftModel
from peft.helpers import rescale_adapter_scale
from transformers import PrinterCallback, Trainer
from trl import DPOConfig, DPOTrainer, SFTConfig, SFTTrainer

from trimtab.guidance.config_file import to_yaml
from trimtab.guidance.data.load import load_preferences, load_rollouts
from trimtab.guidance.errors import DataError, PolicyError, first_line
from trimtab.guidance.files import whole_folder, write_text
from trimtab.guidance.policy import Policy, load_policy
from trimtab.guidance.text.encoding import EncodedReply, ReplyEncoder
from trimtab.guidance.text.prompt_form import form_of
from trimtab.guidance.training.lora.config import LoraConfig, Method

logger = logging.getLogger(__name__)
CONFIG_FILE = "lora_config.yaml"
_WEIGHTS_FILE = "adapter_model.safetensors"  # peft would read a pickle in its absence
_IGNORED = -100  # torch's label of a position without loss


@dataclass(frozen=True, slots=True)
class Tuned:
    """history: what the trainer logged, step by step. merged: model folders by their scale."""

    adapter: Path
    history: tuple[dict[str, float], ...]
    merged: dict[float, Path]


def tune(config: LoraConfig) -> Tuned:
    """Trains (or takes config.adapter), merges where that is asked for, and writes the configuration.

    Raises:
        DataError, PolicyError: one line that names the thing and the fix.
    """
    write_text(config.out / CONFIG_FILE, to_yaml(config))
    history = train_adapter(config) if config.adapter is None else ()
    scales = config.scales if config.merge else ()
    merged = {scale: merge(config, scale, config.merged_folder(scale)) for scale in scales}
    return Tuned(config.adapter_folder, history, merged)


def train_adapter(config: LoraConfig) -> tuple[dict[str, float], ...]:
    """Writes config.adapter_folder; returns what the trainer logged."""
    policy = load_policy(config.model, device=config.device, with_padding=True)
    load, make = TRAINERS[config.method]
    rows = load(config, policy)
    logger.info("%s on %d rows of %s", config.method, len(rows), config.data)
    if not config.show_progress:
        datasets.disable_progress_bars()
    try:
        trainer = make(config, policy, rows)
    except ValueError as error:  # peft on target modules that the model does not have
        raise PolicyError(f"{config.model} cannot be adapted ({first_line(error)})") from error
    if not config.show_progress:
        trainer.remove_callback(PrinterCallback)
    trainer.train()
    _check_finite(config, trainer.model)
    with whole_folder(config.adapter_folder) as folder:
        trainer.model.save_pretrained(folder)
    return tuple(trainer.state.log_history)


def merge(config: LoraConfig, scale: float, folder: Path) -> Path:
    """Writes the policy with `scale` times the adapter added to its weights. Returns the folder.

    Raises PolicyError where the adapter cannot be read or does not fit the policy.
    """
    if not (config.adapter_folder / _WEIGHTS_FILE).is_file():
        raise PolicyError(
            f"{config.adapter_folder} holds no {_WEIGHTS_FILE}: name the folder that training wrote"
        )
    policy = load_policy(config.model, device=config.device, with_padding=True)
    try:
        model = PeftModel.from_pretrained(policy.model, config.adapter_folder, local_files_only=True)
    except (OSError, ValueError, RuntimeError) as error:
        raise PolicyError(
            f"{config.adapter_folder}: no adapter for {config.model} ({first_line(error)}): name the folder "
            "that training wrote"
        ) from error
    with rescale_adapter_scale(model, scale):
        merged = model.merge_and_unload(safe_merge=True)
    with whole_folder(folder) as new:
        merged.save_pretrained(new)
        policy.tokenizer.save_pretrained(new)
    return folder


def _check_finite(config: LoraConfig, model: PeftModel) -> None:
    for name, parameter in model.named_parameters():
        if parameter.requires_grad and not parameter.isfinite().all():
            raise DataError(
                f"{config.data}: training diverged, {name} is not finite: lower "
                f"learning_rate={config.learning_rate}"
            )


class TokenizedDpoTrainer(DPOTrainer):  # type: ignore[misc]  # TRL has no type stubs
    """Takes rows of token ids as they are: DPOTrainer takes text, and would end replies that were cut."""

    def _prepare_dataset(self, dataset: datasets.Dataset, *args: Any) -> datasets.Dataset:
        return dataset


def dpo_trainer(config: LoraConfig, policy: Policy, rows: datasets.Dataset) -> Trainer:
    arguments = DPOConfig(
        beta=config.tau,
        loss_type=[config.loss_type],
        label_smoothing=config.flipped,
        precompute_ref_log_probs=config.precompute_reference,
        **_arguments(config, policy),
    )
    return _build(TokenizedDpoTrainer, arguments, config, policy, rows)


def sft_trainer(config: LoraConfig, policy: Policy, rows: datasets.Dataset) -> Trainer:
    return _build(SFTTrainer, SFTConfig(**_arguments(config, policy)), config, policy, rows)


def _arguments(config: LoraConfig, policy: Policy) -> dict[str, Any]:
    is_cpu = policy.device.type == "cpu"
    return {
        "output_dir": str(config.out),
        "num_train_epochs": config.epochs,
        "per_device_train_batch_size": config.batch_size,
        "learning_rate": config.learning_rate,
        "weight_decay": config.weight_decay,
        "warmup_steps": config.warmup,
        "lr_scheduler_type": "cosine",
        "seed": config.seed,
        "use_cpu": is_cpu,
        "dataloader_pin_memory": not is_cpu,
        # TRL's own defaults are for large models: bfloat16 whatever the model is, activations computed twice.
        "bf16": policy.lm_head.dtype == torch.bfloat16,
        "gradient_checkpointing": False,
        "max_length": None,  # over-long rows are left out, not cut
        "save_strategy": "no",
        "report_to": "none",
        "disable_tqdm": not config.show_progress,
    }


def _build(
    trainer: type[Trainer], arguments: Any, config: LoraConfig, policy: Policy, rows: datasets.Dataset
) -> Trainer:
    arguments._n_gpu = min(1, arguments.n_gpu)  # TRL refuses DataParallel
    names = config.target_modules.split(",")
    adapters = PeftLoraConfig(
        r=config.rank,
        lora_alpha=config.alpha,
        lora_dropout=config.dropout,
        target_modules=names[0] if len(names) == 1 and names[0] == "all-linear" else names,
        task_type="CAUSAL_LM",
    )
    return trainer(
        model=policy.model,
        args=arguments,
        train_dataset=rows,
        processing_class=policy.tokenizer,
        peft_config=adapters,
    )


def preference_rows(config: LoraConfig, policy: Policy) -> datasets.Dataset:
    """Columns prompt_ids, chosen_ids, rejected_ids. Raises DataError or PolicyError with one line."""
    encoder = _encoder(config, policy)
    pairs = [
        (
            encoder.encode(row.prompt, row.chosen, row.chosen_sampled),
            encoder.encode(row.prompt, row.rejected, row.rejected_sampled),
        )
        for row in load_preferences(config.data, config, as_text=encoder.form == "text").rows
    ]
    encoder.notes.tell(logger, config.data)
    return pairs_dataset(_fitting(pairs, config))


def completion_rows(config: LoraConfig, policy: Policy) -> datasets.Dataset:
    """Columns input_ids and labels, of which the prompt's are ignored. Raises as preference_rows."""
    encoder = _encoder(config, policy)
    replies = [
        (encoder.encode(row.prompt, row.completion, row.sampled),)
        for row in load_rollouts(config.data, config, as_text=encoder.form == "text").rows
    ]
    encoder.notes.tell(logger, config.data)
    kept = [reply for (reply,) in _fitting(replies, config)]
    return datasets.Dataset.from_dict(
        {
            "input_ids": [[*reply.prompt_ids, *drawn(reply)] for reply in kept],
            "labels": [[*[_IGNORED] * len(reply.prompt_ids), *drawn(reply)] for reply in kept],
        }
    )


def _encoder(config: LoraConfig, policy: Policy) -> ReplyEncoder:
    form = form_of(policy.tokenizer, config.rows, [config.data])
    return ReplyEncoder(policy.tokenizer, form, end_ids=policy.end_ids, extra_keys=config.extra_columns)


def pairs_dataset(pairs: Sequence[tuple[EncodedReply, ...]]) -> datasets.Dataset:
    """Pairs (chosen, rejected) as DPOTrainer tokenizes them itself."""
    return datasets.Dataset.from_dict(
        {
            "prompt_ids": [list(chosen.prompt_ids) for chosen, _ in pairs],
            "chosen_ids": [drawn(chosen) for chosen, _ in pairs],
            "rejected_ids": [drawn(rejected) for _, rejected in pairs],
        }
    )


def drawn(reply: EncodedReply) -> list[int]:
    """The reply's tokens; one that was cut by length has no end token."""
    return list(reply.reply_ids[: reply.num_drawn])


def _fitting(rows: Sequence[tuple[EncodedReply, ...]], config: LoraConfig) -> list[tuple[EncodedReply, ...]]:
    fitting = [row for row in rows if max(reply.num_tokens for reply in row) <= config.max_tokens]
    if not fitting:
        raise DataError(f"{config.data}: every row is longer than max_tokens={config.max_tokens}: raise it")
    if len(fitting) < len(rows):
        left_out = len(rows) - len(fitting)
        logger.warning(
            "%s: left out %d rows longer than max_tokens=%d", config.data, left_out, config.max_tokens
        )
    return fitting


Load = Callable[[LoraConfig, Policy], datasets.Dataset]
Make = Callable[[LoraConfig, Policy, datasets.Dataset], Trainer]
TRAINERS: dict[Method, tuple[Load, Make]] = {
    "dpo": (preference_rows, dpo_trainer),
    "sft": (completion_rows, sft_trainer),
}
