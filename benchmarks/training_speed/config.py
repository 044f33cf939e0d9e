"""What both contenders train on, and how often they are timed."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from benchmarks.cpu.subject import SIZES, SIZES_135M


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
    out: where the JSON document is written as well.
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
