"""The request's sampling fields as the engine's SamplingParams, and the room that its context leaves."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from trimtab.guidance.errors import ChatTemplateError
from trimtab.guidance.text.message import template_role
from trimtab.guidance.text.render import encode_chat
from trimtab.server.api.config import ApiConfig
from trimtab.server.api.errors import ContextLengthError
from trimtab.server.api.generation_defaults import SamplingDefaults
from trimtab.server.api.protocol import (
    ChatRequest,
    CompletionRequest,
    GenerationRequest,
    GuidanceFields,
    Message,
)
from trimtab.server.api.tokens import Tokenizer
from trimtab.server.engine.request import (
    MAX_LOGPROBS,
    EngineInfo,
    Guidance,
    InvalidRequestError,
    SamplingParams,
    shown,
)

COMPLETION_MAX_TOKENS = 16

_SAME_NAME = (
    "temperature",
    "top_p",
    "top_k",
    "min_p",
    "n",
    "seed",
    "ignore_eos",
    "presence_penalty",
    "frequency_penalty",
    "repetition_penalty",
)


def chat_sampling(
    body: ChatRequest, prompt_length: int, info: EngineInfo, defaults: SamplingDefaults
) -> SamplingParams:
    """Without a limit the reply may use what the prompt leaves of the context, or the model's own default.

    Raises InvalidRequestError for a value out of range, ContextLengthError for what cannot fit.
    """
    named = "max_tokens" if body.max_tokens is not None else "max_completion_tokens"
    asked = body.max_tokens if body.max_tokens is not None else body.max_completion_tokens
    room = _room("messages", prompt_length, info)
    logprobs = (body.top_logprobs or 0) if body.logprobs else None
    usual = min(defaults.max_new_tokens or room, room)
    limit = _fitting(asked, named, room, prompt_length, info) or usual
    return _sampling(body, info, defaults, limit, logprobs)


def completion_sampling(
    body: CompletionRequest, prompt_length: int, info: EngineInfo, defaults: SamplingDefaults
) -> SamplingParams:
    """Without a limit the reply has at most 16 tokens, as OpenAI's reference says. Raises like chat_sampling.

    prompt_length: of the longest prompt.
    """
    room = _room("prompt", prompt_length, info)
    if body.logprobs is not None and not 0 <= body.logprobs <= MAX_LOGPROBS:
        got = shown(body.logprobs)
        raise InvalidRequestError(f"logprobs: must be 0…{MAX_LOGPROBS}, got {got}", "logprobs")
    asked = _fitting(body.max_tokens, "max_tokens", room, prompt_length, info)
    return _sampling(body, info, defaults, asked or min(COMPLETION_MAX_TOKENS, room), body.logprobs)


def _sampling(
    body: GenerationRequest,
    info: EngineInfo,
    defaults: SamplingDefaults,
    max_tokens: int,
    logprobs: int | None,
) -> SamplingParams:
    asked = {name: getattr(body, name) for name in _SAME_NAME}
    given: dict[str, Any] = {name: value for name, value in asked.items() if value is not None}
    return SamplingParams(
        max_tokens=max_tokens,
        logprobs=logprobs,
        stop=tuple(body.stop or ()),
        logit_bias=_logit_bias(body.logit_bias or {}, info.vocab_size),
        **(defaults.sampling | given),
    )


def _room(param: str, prompt_length: int, info: EngineInfo) -> int:
    if prompt_length == 0:
        raise InvalidRequestError(f"{param}: the prompt has no tokens", param)
    if prompt_length >= info.max_model_len:
        raise ContextLengthError(
            f"{param}: the prompt has {prompt_length} tokens, the model's context is {info.max_model_len}"
            " for prompt and reply; shorten the prompt",
            param,
        )
    return info.max_model_len - prompt_length


def _fitting(asked: int | None, name: str, room: int, prompt_length: int, info: EngineInfo) -> int | None:
    if asked is None:
        return None
    if asked < 1:
        raise InvalidRequestError(f"{name}: must be at least 1, got {shown(asked)}", name)
    if asked > room:
        raise ContextLengthError(
            f"{name}: {shown(asked)} tokens after a prompt of {prompt_length} exceed the model's context of"
            f" {info.max_model_len}; ask for at most {room}",
            name,
        )
    return asked


def _logit_bias(given: dict[str, float], vocab_size: int) -> tuple[tuple[int, float], ...]:
    """Ids only as Python writes them, so that no two keys are one token: "5", not "05", " 5" or "5_0"."""
    longest = len(str(vocab_size))  # before int() reads it
    pairs = []
    for key, bias in given.items():
        is_plain = len(key) <= longest and key.isascii() and key.isdecimal() and (key[0] != "0" or key == "0")
        if not is_plain or (token := int(key)) >= vocab_size:
            raise InvalidRequestError(
                f"logit_bias: {shown(key)} is no token id; ids are 0…{vocab_size - 1}, written plainly",
                "logit_bias",
            )
        pairs.append((token, bias))
    return tuple(pairs)


Heads = tuple[tuple[str, float], ...]


def resolve_guidance(fields: GuidanceFields | None, config: ApiConfig, info: EngineInfo) -> Guidance:
    """No object: the server's default. Left-out heads: the default head. Left-out strength: 1 if another
    steering key is given, else the server's default. Nothing merges with anything else.

    config: resolved. Raises InvalidRequestError that names the field for an unknown head, a head that
    cannot do what is asked, and a number out of range.
    """
    if fields is None:
        return Guidance(config.default_strength, _weigh(config.default_head))
    strength = fields.strength
    if strength is None:
        strength = config.default_strength if fields.heads is None else 1.0
    heads = _default_heads(config, info) if fields.heads is None else tuple(fields.heads.items())
    guidance = Guidance(strength, heads, bool(fields.trace))
    _check_heads(guidance, info)
    return guidance


def _weigh(head: str | None) -> Heads:
    return () if head is None else ((head, 1.0),)


def _default_heads(config: ApiConfig, info: EngineInfo) -> Heads:
    if config.default_head is None and info.heads:
        raise InvalidRequestError(
            f"guidance.heads: name one; loaded are {_names(info)} and the server has no default head",
            "guidance.heads",
        )
    return _weigh(config.default_head)


def _check_heads(guidance: Guidance, info: EngineInfo) -> None:
    loaded = {head.name: head for head in info.heads}
    for name, weight in guidance.heads:
        param = f"guidance.heads.{name}"
        if name not in loaded:
            raise InvalidRequestError(f"{param}: no such head; loaded heads: {_names(info)}", param)
        if guidance.strength * weight != 0 and not loaded[name].has_advantage:
            raise InvalidRequestError(f"{param}: has no advantage and cannot steer; use weight 0", param)
    if guidance.strength != 0 and not loaded:
        raise InvalidRequestError(
            "guidance.strength: no head is loaded; start the server with --heads FOLDER", "guidance.strength"
        )


def _names(info: EngineInfo) -> str:
    return ", ".join(head.name for head in info.heads) or "none"


def render_chat(tokenizer: Tokenizer, messages: Sequence[Message]) -> list[int]:
    """Token ids of the conversation up to where the assistant's reply begins.

    Raises InvalidRequestError when there is no template, or when it refuses the conversation or fails at it.
    """
    if not tokenizer.chat_template:
        raise InvalidRequestError(
            "messages: this model has no chat template; start the server with --chat-template FILE, or use"
            " /v1/completions",
            "messages",
        )
    turns = [{"role": template_role(m.role), "content": m.text} for m in messages]
    try:
        return encode_chat(tokenizer, turns)
    except ChatTemplateError as error:
        raise InvalidRequestError(f"messages: {error}", "messages") from error
