"""Points for a frontier from fine-tuned policies: their replies, and their exact KL from the policy."""

from __future__ import annotations

import gc
from collections.abc import Mapping
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Any

from trimtab.guidance.data.load import load_prompts
from trimtab.guidance.policy import load_policy
from trimtab.guidance.text.encoding import EncodedReply, ReplyEncoder, Sampled
from trimtab.guidance.text.message import Prompt
from trimtab.guidance.text.prompt_form import Form, form_of
from trimtab.guidance.training.lora.measure import measure_tuned
from trimtab.server.commands.errors import UserError
from trimtab.server.engine.config import EngineConfig
from trimtab.server.engine.engine import Engine
from trimtab.server.engine.policy import ModelError
from trimtab.server.engine.request import Request, SamplingParams
from trimtab.server.rollouts.offline import CompletedChoice, generate

if TYPE_CHECKING:
    from trimtab.server.commands.train.lora import TrainLoraConfig

Reply = tuple[int, CompletedChoice]  # number of the prompt, and what was drawn


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
        encoded = [_encode(encoder, chosen[number], choice) for number, choice in replies]
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


def _sample(config: TrainLoraConfig, folder: Path, prompts: tuple[Prompt, ...], form: Form) -> list[Reply]:
    """Replies at temperature 1; prompt and sample have the same noise at every scale."""
    try:
        engine = Engine.from_config(EngineConfig(folder, device=config.device, compile="off"))
    except ModelError as error:
        raise UserError(str(error)) from error
    encoder = ReplyEncoder(engine.policy.tokenizer, form, extra_keys=config.extra_columns)
    requests = [
        Request(
            str(number),
            encoder.prompt_ids(prompt),
            SamplingParams(config.reply_tokens, n=config.num_replies, seed=(config.seed << 32) + number),
        )
        for number, prompt in enumerate(prompts)
    ]
    completions = generate(engine, requests, progress=folder.name if config.show_progress else None)
    del engine
    gc.collect()  # the engine's cache, before two policies are loaded
    return [(number, choice) for number, done in enumerate(completions) for choice in done.choices]


def _encode(encoder: ReplyEncoder, prompt: Prompt, choice: CompletedChoice) -> EncodedReply:
    sampled = Sampled(tuple(choice.token_ids), is_cut=choice.finish_reason == "length")
    return encoder.encode(prompt, choice.text, sampled)


def _columns(replies: list[Reply]) -> dict[str, list[Any]]:
    seen: dict[int, int] = {}
    samples = []
    for number, _ in replies:
        samples.append(seen.get(number, 0))
        seen[number] = samples[-1] + 1
    return {
        "prompt_ids": [number for number, _ in replies],
        "samples": samples,
        "texts": [choice.text for _, choice in replies],
        "token_ids": [choice.token_ids for _, choice in replies],
        "is_cut": [choice.finish_reason == "length" for _, choice in replies],
    }
