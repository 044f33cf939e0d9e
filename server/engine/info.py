"""What the engine tells the outside about itself."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class HeadInfo:
    """rows: as what its training read prompts, chats or texts; None where that was not recorded."""

    name: str
    has_advantage: bool
    has_value: bool
    has_reward: bool
    trained_on: str
    rows: str | None = None


@dataclass(frozen=True, slots=True)
class EngineInfo:
    """max_model_len: tokens of prompt and reply together. created: Unix seconds."""

    model_name: str
    max_model_len: int
    vocab_size: int
    eos_token_ids: tuple[int, ...]
    heads: tuple[HeadInfo, ...]
    created: int
