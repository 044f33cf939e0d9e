"""The contenders: each prepares what it needs once, and trains an epoch after a few steps to warm up."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch

from benchmarks.training_speed.clock import EpochClock, peak_bytes
from benchmarks.training_speed.config import SpeedConfig
from benchmarks.training_speed.pairs import draw_pairs
from trimtab.guidance.features.source import FeatureCache
from trimtab.guidance.heads.forms import Head
from trimtab.guidance.heads.manifest import Parts
from trimtab.guidance.policy import Policy, load_policy
from trimtab.guidance.training.config import AdvantageConfig, OptimiserConfig, TrainConfig
from trimtab.guidance.training.loop import train_part
from trimtab.guidance.training.lora.config import LoraConfig
from trimtab.guidance.training.lora.train import pairs_dataset
from trimtab.guidance.training.methods import METHODS


@dataclass(frozen=True, slots=True)
class Turn:
    """prepare_seconds: what is done once: features, or reference log-probabilities. idle_bytes: the most that
    was held before, with policy and pairs loaded. product_cpu_seconds: of z = h Wᵀ at as many positions as
    an epoch has, measured after it: the least that training can take."""

    prepare_seconds: float
    epoch_seconds: float
    epoch_cpu_seconds: float
    peak_bytes: int
    idle_bytes: int
    product_cpu_seconds: float = 0.0


def head(config: SpeedConfig, model: Path, scratch: Path) -> Turn:
    """DPO of an advantage on features of the frozen policy."""
    policy, pairs = load_policy(model, device=config.device, with_padding=True), draw_pairs(config)
    idle = peak_bytes(config.device)
    start = time.perf_counter()
    features = FeatureCache(policy, show_progress=False)
    features.get([reply for pair in pairs for reply in pair.replies])
    prepared = time.perf_counter() - start
    advantage = AdvantageConfig(config.head_form, config.head_rank, "silu", "dpo")
    settings = TrainConfig(
        name="speed", model=model, head_folder=scratch, run_folder=scratch, advantage=advantage
    )
    torch.manual_seed(config.seed)
    parts = Parts(advantage=advantage.part())
    trained = Head(parts, policy.identity.hidden_size, policy.identity.vocab_size).to(policy.device)
    method = METHODS["advantage"]["dpo"]
    clock = EpochClock(config.warm_up)
    train_part(
        method.objective(trained, settings, features),
        method.bind(advantage),
        pairs,
        folder=scratch,
        optimiser=OptimiserConfig(batch_size=config.batch_size),
        config=settings,
        device=policy.device,
        max_steps=config.warm_up + config.num_steps,
        callbacks=[clock],
    )
    peak = peak_bytes(config.device)
    product = _product_seconds(policy, 2 * config.batch_size * config.reply_tokens) * config.num_steps
    return Turn(prepared, clock.seconds, clock.cpu_seconds, peak, idle, product)


def _product_seconds(policy: Policy, num_positions: int) -> float:
    """CPU time of the logits of so many positions, the median of five."""
    h = torch.randn(num_positions, policy.lm_head.shape[1], device=policy.device)
    z, seconds = torch.empty(num_positions, policy.vocab_size, device=policy.device), []
    for _ in range(5):
        start = time.process_time()
        policy.write_logits(h, z)
        seconds.append(time.process_time() - start)
    return statistics.median(seconds)


def lora(config: SpeedConfig, model: Path, scratch: Path) -> Turn:
    """TRL's DPOTrainer with peft adapters on every linear layer, as `trimtab train --lora` runs it."""
    from trimtab.guidance.training.lora.train import dpo_trainer  # noqa: PLC0415 (only here, for the other's memory)

    policy, pairs = load_policy(model, device=config.device, with_padding=True), draw_pairs(config)
    idle = peak_bytes(config.device)
    settings = LoraConfig(
        model=model,
        out=scratch,
        preferences=scratch,
        rank=config.lora_rank,
        batch_size=config.batch_size,
        device=config.device,
        seed=config.seed,
    )
    start = time.perf_counter()
    rows = pairs_dataset([pair.replies for pair in pairs])
    trainer = dpo_trainer(settings, policy, rows)
    prepared = time.perf_counter() - start
    trainer.args.max_steps = config.warm_up + config.num_steps
    clock = EpochClock(config.warm_up)
    trainer.add_callback(clock)
    trainer.train()
    return Turn(prepared, clock.seconds, clock.cpu_seconds, peak_bytes(config.device), idle)


CONTENDERS: dict[str, Callable[[SpeedConfig, Path, Path], Turn]] = {"head": head, "lora": lora}
