"""The policy and its heads as a configuration asks for them: loaded, identified, checked."""

from __future__ import annotations

import torch

from trimtab.guidance.heads.bank import HeadBank
from trimtab.server.engine.compiled_decode import compile_decode
from trimtab.server.engine.config import EngineConfig
from trimtab.server.engine.policy import ModelError, Policy, load_policy
from trimtab.server.engine.self_check import self_check


def load(config: EngineConfig, chat_template: str | None = None) -> tuple[Policy, HeadBank, EngineConfig]:
    """The policy, its heads, and the configuration resolved for its device. chat_template: replaces the
    tokenizer's.

    Raises ModelError or HeadError with one line that names the thing and the fix.
    """
    config = _resolve(config)
    policy = load_policy(
        config.model,
        name=config.served_model_name,
        device=config.device,
        dtype=config.dtype,
        max_model_len=config.max_model_len,
        pack_weights=config.pack_weights,
        chat_template=chat_template,
    )
    if policy.device.type == "cuda":
        torch.cuda.set_device(policy.device)  # of this thread, which runs the engine
    policy.compiled_decode = compile_decode(policy, config)
    self_check(policy, config)
    bank = HeadBank.load(
        config.heads,
        policy.identity,
        device=policy.device,
        dtype=policy.dtype,
        vocab_size=policy.vocab_size,
    )
    return policy, bank, config


def _resolve(config: EngineConfig) -> EngineConfig:
    device = config.device
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        return config.resolved(torch.device(device).type)
    except (ValueError, RuntimeError) as error:
        raise ModelError(str(error)) from error
