"""TRL's trainers, as the methods need them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import datasets
import torch
from peft import LoraConfig as PeftLoraConfig
from transformers import Trainer
from trl import DPOConfig, DPOTrainer, SFTConfig, SFTTrainer

from trimtab.guidance.policy import Policy
from trimtab.guidance.training.lora.config import LoraConfig, Method
from trimtab.guidance.training.lora.rows import completion_rows, preference_rows


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


Load = Callable[[LoraConfig, Policy], datasets.Dataset]
Make = Callable[[LoraConfig, Policy, datasets.Dataset], Trainer]
TRAINERS: dict[Method, tuple[Load, Make]] = {
    "dpo": (preference_rows, dpo_trainer),
    "sft": (completion_rows, sft_trainer),
}


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
