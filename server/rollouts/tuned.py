"""Points for a frontier from fine-tuned policies: their replies, and their exact KL from the policy."""

from __future__ import annotations

import gc
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

from trimtab.guidance.data.load import load_prompts
from trimtab.guidance.errors import ModelError, UserError
from trimtab.guidance.policy import load_policy
from trimtab.guidance.text.encoding import EncodedReply, ReplyEncoder, Sampled
from trimtab.guidance.text.message import Prompt
from trimtab.guidance.text.prompt_form import Form, form_of
from trimtab.guidance.training.lora.config import LoraConfig
from trimtab.guidance.training.lora.measure import measure_tuned
from trimtab.server.engine.config import EngineConfig
from trimtab.server.engine.engine import Engine
from trimtab.server.engine.request import Completion
from trimtab.server.rollouts.sample import EncodedPrompt, SamplePlan, sample


def measure_points(config: TrainLoraConfig, prompts: Path, merged: Mapping[float, Path]) -> dict[str, Any]:
    """A document with `points`: {label, scale, kl, kls, base_logprobs, prompt_ids, samples, texts, token_ids,
    is_cut}.

    kl is the mean of kls, nats per reply; lists hold one entry per reply; prompt_ids are rows of `prompts`.
    Raises as the engine and measure_tuned do.
    """
    base = load_policy(config.model, device=config.device)
    form = form_of(base.tokenizer, config.rows, [] if config.adapter else [config.data])
    chosen = load_prompts(prompts, config, as_text=form == "text").rows[: config.num_prompts]
    label = config.label or (f"LoRA {config.method.upper()}" if config.adapter is None else "LoRA")
    points = []
    for scale, folder in merged.items():
        replies = _sample(config, folder, chosen, form)
        encoder = ReplyEncoder(base.tokenizer, form, end_ids=base.end_ids, extra_keys=config.extra_columns)
        encoded = [_encode(encoder, chosen[_number(reply)], reply) for reply in replies]
        tuned = load_policy(folder, device=config.device)
        measured = measure_tuned(base, tuned, encoded, show_progress=config.show_progress)
        kls = [reply.kl for reply in measured]
        points.append(
            {
                "label": f"{label} at {scale:g}",
                "scale": scale,
                "kl": fmean(kls),
                "kls": kls,
                "base_logprobs": [reply.base_logprob for reply in measured],
                **_columns(replies),
            }
        )
    return {"label": label, "model": str(config.model), "seed": config.seed, "points": points}


def _sample(
    config: TrainLoraConfig, folder: Path, prompts: tuple[Prompt, ...], form: Form
) -> list[Completion]:
    """Replies at temperature 1; prompt and sample have the same noise at every scale."""
    try:
        engine = Engine.from_config(EngineConfig(folder, device=config.device))
    except ModelError as error:
        raise UserError(str(error)) from error
    encoder = ReplyEncoder(engine.policy.tokenizer, form, extra_keys=config.extra_columns)
    plan = SamplePlan(config.num_replies, config.reply_tokens, seed=config.seed)
    requests = [
        plan.request(EncodedPrompt(number, prompt, encoder.prompt_ids(prompt)))
        for number, prompt in enumerate(prompts)
    ]
    replies = sample(engine, requests, folder.name if config.show_progress else None)
    del engine
    gc.collect()  # the engine's cache, before two policies are loaded
    return replies


def _number(reply: Completion) -> int:
    return int(reply.request.request_id)


def _encode(encoder: ReplyEncoder, prompt: Prompt, reply: Completion) -> EncodedReply:
    return encoder.encode(prompt, reply.text, Sampled(tuple(reply.token_ids), reply.is_cut))


def _columns(replies: list[Completion]) -> dict[str, list[Any]]:
    return {
        "prompt_ids": [_number(reply) for reply in replies],
        "samples": [reply.index for reply in replies],
        "texts": [reply.text for reply in replies],
        "token_ids": [reply.token_ids for reply in replies],
        "is_cut": [reply.is_cut for reply in replies],
    }


@dataclass(frozen=True, kw_only=True)
class TrainLoraConfig(LoraConfig):
    """Fine-tunes the policy itself with low-rank adapters, by TRL's trainers: the baseline for heads.

    DPO on pairs, and a curve of merged policies for `trimtab eval` to draw beside a head's:

      trimtab train --lora --model M --preferences pairs.jsonl --out runs/lora \\
        --merge --scales 0.5 1 2 --measure prompts.jsonl

    measure: rows {prompt}: every merged folder replies to them, and points.json says at what KL from the
    policy, with the texts: what `eval` draws beside a head's frontier.
    num_prompts: how many of the prompts of --measure are replied to, from the first.
    num_replies: replies to each prompt.
    reply_tokens: tokens of a reply, at most.
    label: name of the curve; by default after the method.
    """

    measure: Path | None = None
    num_prompts: int = 200
    num_replies: int = 1
    reply_tokens: int = 200
    label: str = ""

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("num_prompts", "num_replies", "reply_tokens"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        if self.measure is not None and not self.merge:
            raise ValueError("measure needs merged folders: give --merge")
        if self.label and self.measure is None:
            raise ValueError("label names the measured curve: give --measure")
