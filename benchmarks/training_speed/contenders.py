"""Contenders of the training benchmark: each prepares what it needs once, and trains an epoch.

python -m benchmarks.training_speed.contenders NAME CONFIG MODEL runs one turn of one of them in this process;
the last line is the turn as JSON.
"""

from __future__ import annotations

import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from transformers import TrainerCallback

from benchmarks.cpu.subject import SIZES, SIZES_135M
from trimtab.guidance.data.items import PairItem
from trimtab.guidance.features.source import FeatureCache
from trimtab.guidance.heads.forms import Head
from trimtab.guidance.heads.manifest import Parts
from trimtab.guidance.policy import Policy, load_policy
from trimtab.guidance.text.encoding import EncodedReply
from trimtab.guidance.training.config import AdvantageConfig, OptimiserConfig, TrainConfig
from trimtab.guidance.training.loop import train_part
from trimtab.guidance.training.lora.config import LoraConfig
from trimtab.guidance.training.lora.train import pairs_dataset
from trimtab.guidance.training.methods import METHODS


@dataclass(frozen=True, kw_only=True)
class SpeedConfig:
    """Times an epoch of DPO: a low-rank head on cached features, and LoRA adapters by TRL with precomputed
    reference log-probabilities. Same pairs, batches, threads; a process of its own for every turn.

    policy: of random weights: the 31M Llama of 8 000 tokens, or one of SmolLM2-135M's shape, of 49 152.
    contenders: with `head` alone its steps are told, beside the time of their product with the output
    embedding, which nothing can spare.
    pairs: of random tokens, of prompt_tokens and reply_tokens.
    warm_up: steps before the timed epoch begins. repeats: turns of each contender, in alternating order.
    head_rank: of the head's advantage. lora_rank: of TRL's adapters, on every linear layer.
    threads: of torch in each contender; 0 takes one for each core.
    out: where the JSON document is kept.
    """

    policy: Literal["31m", "135m"] = "31m"
    contenders: tuple[Literal["head", "lora"], ...] = ("head", "lora")
    pairs: int = 256
    prompt_tokens: int = 64
    reply_tokens: int = 64
    batch_size: int = 16
    warm_up: int = 2
    repeats: int = 3
    head_rank: int = 64
    head_form: Literal["lowrank", "tied"] = "lowrank"
    lora_rank: int = 16
    threads: int = 0
    device: Literal["cpu", "cuda"] = "cpu"
    seed: int = 0
    out: Path | None = None

    def __post_init__(self) -> None:
        for name in ("pairs", "prompt_tokens", "reply_tokens", "batch_size", "warm_up", "repeats"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        if "head" not in self.contenders:
            raise ValueError(f"contenders must have head among them, got {self.contenders}")
        if self.pairs % self.batch_size:
            raise ValueError(f"pairs={self.pairs} must be a multiple of batch_size={self.batch_size}")

    @property
    def sizes(self) -> dict[str, Any]:
        """Of the policy."""
        return SIZES if self.policy == "31m" else SIZES_135M

    @property
    def num_steps(self) -> int:
        """Of an epoch."""
        return self.pairs // self.batch_size

    def to_json(self) -> str:
        return json.dumps(asdict(self), default=str)


def from_json(text: str) -> SpeedConfig:
    values = json.loads(text)
    return SpeedConfig(**values | {"out": None, "contenders": tuple(values["contenders"])})


_FIRST_WORD = 2  # below are the special tokens


def draw_pairs(config: SpeedConfig) -> list[PairItem]:
    """Random tokens; the same for the same seed."""
    rng = np.random.default_rng(config.seed)
    lengths = (config.prompt_tokens, config.reply_tokens, config.reply_tokens)
    num_tokens, pairs = config.sizes["vocab_size"], []
    for _ in range(config.pairs):
        prompt, chosen, rejected = (
            tuple(rng.integers(_FIRST_WORD, num_tokens, length).tolist()) for length in lengths
        )
        pairs.append(PairItem(EncodedReply(prompt, chosen), EncodedReply(prompt, rejected)))
    return pairs


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
        method.loss.bind(advantage),
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


class EpochClock(TrainerCallback):  # type: ignore[misc]  # transformers has no type stubs
    """seconds: from the end of the last warm-up step to the end of the last step: data, forward, backward and
    optimiser of the steps between, and what is logged and saved on the way. cpu_seconds: the same of all
    threads together, which a busy machine changes less."""

    def __init__(self, warm_up: int) -> None:
        self._warm_up = warm_up
        self._start, self._cpu_start = 0.0, 0.0
        self.seconds, self.cpu_seconds = 0.0, 0.0

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        if state.global_step == self._warm_up:
            self._start, self._cpu_start = time.perf_counter(), time.process_time()
        self.seconds = time.perf_counter() - self._start
        self.cpu_seconds = time.process_time() - self._cpu_start


def peak_bytes(device: str) -> int:
    """On a GPU of its tensors; on a CPU of the whole process, interpreter and libraries with it."""
    if device == "cuda":
        return torch.cuda.max_memory_allocated()
    # Not getrusage's ru_maxrss: a process inherits its parent's.
    for line in Path("/proc/self/status").read_text(encoding="utf-8").splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    raise RuntimeError("/proc/self/status has no VmHWM: peak memory is read on Linux only")


def main(name: str, config_json: str, model: str) -> None:
    config = from_json(config_json)
    if config.threads:
        torch.set_num_threads(config.threads)
    with tempfile.TemporaryDirectory() as scratch:
        turn = CONTENDERS[name](config, Path(model), Path(scratch))
    print(json.dumps(asdict(turn) | {"threads": torch.get_num_threads()}))


if __name__ == "__main__":
    main(*sys.argv[1:])
