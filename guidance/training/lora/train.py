"""Trains an adapter, and merges it into plain model folders."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path

import datasets
from peft import PeftModel
from peft.helpers import rescale_adapter_scale
from transformers import PrinterCallback

from trimtab.guidance.config_file import to_yaml
from trimtab.guidance.errors import DataError, PolicyError
from trimtab.guidance.policy import load_policy
from trimtab.guidance.training.lora.config import LoraConfig
from trimtab.guidance.training.lora.folder import whole_folder
from trimtab.guidance.training.lora.trainers import TRAINERS

logger = logging.getLogger(__name__)
CONFIG_FILE = "lora_config.yaml"
_WEIGHTS_FILE = "adapter_model.safetensors"  # peft would read a pickle in its absence


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
    config.out.mkdir(parents=True, exist_ok=True)
    (config.out / CONFIG_FILE).write_text(to_yaml(config), encoding="utf-8")
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
        raise PolicyError(f"{config.model} cannot be adapted ({_first_line(error)})") from error
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
            f"{config.adapter_folder}: no adapter for {config.model} ({_first_line(error)}): name the folder "
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


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
