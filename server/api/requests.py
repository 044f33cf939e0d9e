"""Bodies read as what the engine takes: sampling, guidance and a prompt's tokens."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import fields, replace
from typing import Any

from trimtab.guidance.controllers import read_controllers
from trimtab.guidance.errors import ChatTemplateError
from trimtab.guidance.ranges import shown
from trimtab.guidance.text.message import template_role
from trimtab.guidance.text.render import Tool, Turn, encode_chat, reads_tools, unread_calls
from trimtab.server.api.config import ApiConfig
from trimtab.server.api.generation_defaults import SamplingDefaults
from trimtab.server.api.schemas.chats import ChatRendering, ChatRequest
from trimtab.server.api.schemas.completions import CompletionRequest
from trimtab.server.api.schemas.generation import GenerationRequest
from trimtab.server.api.schemas.guidance import GuidanceFields
from trimtab.server.api.schemas.messages import Message, ToolCallFields
from trimtab.server.api.tokens import Tokenizer
from trimtab.server.engine.request import (
    MAX_BAD_WORDS,
    MAX_CHOICES,
    MAX_GRAMMAR_LENGTH,
    MAX_STOP_LENGTH,
    EngineInfo,
    GrammarKind,
    GrammarSpec,
    Guidance,
    InvalidRequestError,
    SamplingParams,
    naming_controllers,
    read_rule,
)

COMPLETION_MAX_TOKENS = 16
NEGATIVE_PROMPT = "guidance.rule.negative_prompt"
LONGEST_ID = 19  # decimal digits, before int() reads them: no more fit 64 bits

_CONVERTED = ("max_tokens", "logprobs", "stop", "logit_bias", "stop_token_ids", "bad_words")
_SAME_NAME = [
    field.name
    for field in fields(SamplingParams)
    if field.name in GenerationRequest.model_fields and field.name not in _CONVERTED
]


Words = tuple[tuple[int, ...], ...]


def tokens_of_words(tokenizer: Tokenizer, words: Sequence[str]) -> Words:
    """Each in the two ways in which it is written most: as it begins a text, and after a space.

    Raises InvalidRequestError for too many words, and for an empty one.
    """
    if len(words) > MAX_BAD_WORDS:
        raise InvalidRequestError(f"has {len(words)} words, of at most {MAX_BAD_WORDS}", "bad_words")
    found: dict[tuple[int, ...], None] = {}
    for word in words:
        if not 0 < len(word) <= MAX_STOP_LENGTH:
            what = f"must be words of 1…{MAX_STOP_LENGTH} characters, got one of {len(word)}"
            raise InvalidRequestError(what, "bad_words")
        for written in (word, f" {word.lstrip()}"):
            found[tuple(tokenizer(written, add_special_tokens=False)["input_ids"])] = None
    return tuple(found)


def truncated(prompt: list[int], body: GenerationRequest, info: EngineInfo) -> list[int]:
    """The last of the prompt's tokens, as many as are asked for; −1 are those that leave room for a reply.

    Raises InvalidRequestError for a number out of range.
    """
    limit = getattr(body, "max_completion_tokens", None) or body.max_tokens or 1
    most, wanted = info.max_model_len - max(limit, 1), body.truncate_prompt_tokens
    if wanted is None:
        return prompt
    if wanted == 0 or not -1 <= wanted <= info.max_model_len:
        what = f"must be 1…{info.max_model_len}, or -1 for what fits, got {shown(wanted)}"
        raise InvalidRequestError(what, "truncate_prompt_tokens")
    return prompt[-max(most if wanted == -1 else wanted, 1) :]


def chat_sampling(
    body: ChatRequest, prompt_length: int, info: EngineInfo, defaults: SamplingDefaults, bad_words: Words = ()
) -> SamplingParams:
    """Without a limit the reply may use what the prompt leaves of the context, or the model's own default.

    bad_words: as `tokens_of_words` gives them.
    Raises InvalidRequestError for a value out of range.
    """
    asked = body.max_completion_tokens if body.max_completion_tokens is not None else body.max_tokens
    room = _room(prompt_length, info)
    usual = min(defaults.max_new_tokens or room, room)
    logprobs = (body.top_logprobs or 0) if body.logprobs else None
    return _sampling(body, defaults, usual if asked is None else asked, logprobs, bad_words)


def completion_sampling(
    body: CompletionRequest,
    prompt_length: int,
    info: EngineInfo,
    defaults: SamplingDefaults,
    bad_words: Words = (),
) -> SamplingParams:
    """Without a limit the reply has at most 16 tokens, as OpenAI's reference says. Raises like chat_sampling.

    prompt_length: of the longest prompt. Of no tokens all else is checked.
    """
    usual = min(COMPLETION_MAX_TOKENS, _room(prompt_length, info))
    max_tokens = usual if body.max_tokens is None else body.max_tokens or 1
    return _sampling(body, defaults, max_tokens, body.logprobs, bad_words)


def _room(prompt_length: int, info: EngineInfo) -> int:
    """Tokens that a reply may have; 1 where there is no room, so that it is the prompt that is refused."""
    return max(1, info.max_model_len - prompt_length)


def _sampling(
    body: GenerationRequest,
    defaults: SamplingDefaults,
    max_tokens: int,
    logprobs: int | None,
    bad_words: Words,
) -> SamplingParams:
    asked = {name: getattr(body, name) for name in _SAME_NAME}
    given: dict[str, Any] = {name: value for name, value in asked.items() if value is not None}
    sampling = SamplingParams(
        max_tokens=max_tokens,
        logprobs=logprobs,
        stop=tuple(body.stop or ()),
        logit_bias=_logit_bias(body.logit_bias or {}),
        stop_token_ids=tuple(body.stop_token_ids or ()),
        bad_words=bad_words,
        **(defaults.sampling | given),
    )
    if body.best_of is None:
        return sampling
    _check_best_of(body.best_of)
    return replace(sampling, n=body.best_of)


def _check_best_of(best_of: int) -> None:
    if not 1 <= best_of <= MAX_CHOICES:
        raise InvalidRequestError(f"must be 1…{MAX_CHOICES}, got {shown(best_of)}", "best_of")


def _logit_bias(given: dict[str, float]) -> tuple[tuple[int, float], ...]:
    """Ids only as Python writes them, so that no two keys are one token: "5", not "05", " 5" or "5_0"."""
    for key in given:
        is_plain = key.isascii() and key.isdecimal() and (key[0] != "0" or key == "0")
        if not is_plain or len(key) > LONGEST_ID:
            what = f'{shown(key)} is no token id; ids are written plainly, such as "5"'
            raise InvalidRequestError(what, "logit_bias")
    return tuple((int(key), bias) for key, bias in given.items())


ANY_OBJECT = {"type": "object"}


def resolve_grammar(body: GenerationRequest) -> GrammarSpec | None:
    """The one constraint that a request may put on its reply's text, in whichever of its spellings.

    Raises InvalidRequestError for several, for an empty object, and for a text or list out of range.
    """
    given = list(_constraints(body))
    if not given:
        return None
    if len(given) > 1:
        names = " and ".join(name for name, _, _ in given)
        raise InvalidRequestError(f"a reply is held to one constraint, got {names}; give one", given[1][0])
    name, kind, value = given[0]
    if kind == "choice" and "" in value:
        raise InvalidRequestError("must not contain an empty string", name)
    return GrammarSpec(kind, value if isinstance(value, str) else write_grammar(value, name), name)


def write_grammar(value: Any, param: str) -> str:
    """As JSON. Raises InvalidRequestError for what is nested too deeply, or longer than any grammar, of which
    no more is written."""
    pieces, length = list[str](), 0
    try:
        for piece in json.JSONEncoder(ensure_ascii=False).iterencode(value):
            pieces.append(piece)
            length += len(piece)
            if length > MAX_GRAMMAR_LENGTH:
                raise InvalidRequestError(f"has more than {MAX_GRAMMAR_LENGTH} characters; shorten it", param)
    except RecursionError as error:
        raise InvalidRequestError("is nested too deeply", param) from error
    return "".join(pieces)


def _constraints(body: GenerationRequest) -> Iterator[tuple[str, GrammarKind, Any]]:
    """Of all that are given: the field, how its value is to be read, and the value."""
    asked, structured = body.response_format, body.structured_outputs
    if asked is not None and asked.json_schema is not None:
        yield "response_format.json_schema.schema", "json_schema", asked.json_schema.schema_
    elif asked is not None and asked.type == "json_object":
        yield "response_format", "json_schema", ANY_OBJECT
    for name, value in body.guided.items():
        yield f"guided_{name}", _KINDS[name], value
    if structured is None:
        return
    if not structured.given and not structured.json_object:
        what = "asks for nothing; give one of json, regex, choice, grammar, json_object"
        raise InvalidRequestError(what, "structured_outputs")
    for name, value in structured.given.items():
        yield f"structured_outputs.{name}", _KINDS[name], value
    if structured.json_object:
        yield "structured_outputs.json_object", "json_schema", ANY_OBJECT


_KINDS: dict[str, GrammarKind] = {
    "json": "json_schema",
    "regex": "regex",
    "choice": "choice",
    "grammar": "grammar",
}
"""vLLM's names."""


Heads = tuple[tuple[str, float], ...]


def resolve_guidance(
    fields: GuidanceFields | None, config: ApiConfig, info: EngineInfo, negative: Sequence[int] = ()
) -> Guidance:
    """No object: the server's default. Left-out heads: the default head. Left-out strength: 1 if heads, a
    rule that reads values, or a controller of what heads add are given, else the server's default. Nothing
    merges with anything else. A rule that does not read values needs no head.

    config: resolved. negative: token ids of the rule's other prompt.
    Raises InvalidRequestError for a number out of range, and for heads that are neither named nor to be had
    by default.
    """
    if fields is None:
        return Guidance(config.default_strength, _weigh(config.default_head))
    with naming_controllers():
        controllers = read_controllers(fields.controllers)
    options = {} if fields.rule is None else fields.rule.options
    if negative:
        options["negative_prompt"] = tuple(negative)
    rule = read_rule("tilt" if fields.rule is None else fields.rule.kind, options)
    strength = fields.strength
    if strength is None:
        is_controlled = controllers and not rule.adds_scores
        is_steered = fields.heads is not None or is_controlled or rule.reads_values
        strength = 1.0 if is_steered else config.default_strength
    if fields.heads is not None:
        heads = tuple(fields.heads.items())
    elif rule.kind != "tilt" and not strength:
        heads = _weigh(config.default_head)
    else:
        heads = _default_heads(config, info)
    return Guidance(strength, heads, bool(fields.trace), controllers, rule)


def _weigh(head: str | None) -> Heads:
    return () if head is None else ((head, 1.0),)


def _default_heads(config: ApiConfig, info: EngineInfo) -> Heads:
    if config.default_head is None and info.heads:
        names = ", ".join(head.name for head in info.heads)
        what = f"name one; loaded are {names} and the server has no default head"
        raise InvalidRequestError(what, "guidance.heads")
    return _weigh(config.default_head)


def negative_chat(tokenizer: Tokenizer, body: ChatRequest, tools: Sequence[Tool] = ()) -> list[int]:
    """Token ids of the rule's other conversation, if any. A system message alone stands in the place of the
    request's own, before the request's other messages. Raises like render_chat."""
    messages = _negative_messages(body)
    if not messages:
        return []
    if [message.role for message in messages] in (["system"], ["developer"]):
        messages += [m for m in body.messages if m.role not in ("system", "developer")]
    return render_chat(tokenizer, messages, tools, NEGATIVE_PROMPT)


def negative_text(tokenizer: Tokenizer, body: CompletionRequest) -> list[int]:
    """Token ids of the rule's other text, if any."""
    messages = _negative_messages(body)
    if not messages:
        return []
    if len(messages) > 1 or messages[0].role != "system":
        raise InvalidRequestError("must be a string for completions", NEGATIVE_PROMPT)
    return tokenizer.encode(messages[0].text)


def negative_texts(body: GenerationRequest) -> list[str]:
    """Of the rule's other prompt, if any."""
    return [message.text for message in _negative_messages(body)]


def _negative_messages(body: GenerationRequest) -> list[Message]:
    rule = None if body.guidance is None else body.guidance.rule
    return list(rule.negative_prompt or ()) if rule is not None else []


def render_chat(
    tokenizer: Tokenizer,
    messages: Sequence[Message],
    tools: Sequence[Tool] = (),
    param: str = "messages",
    asked: ChatRendering | None = None,
) -> list[int]:
    """Token ids of the conversation up to where the assistant's reply begins, or as it is asked for. param:
    the field it stands in.

    Raises InvalidRequestError when there is no template, when it refuses the conversation or fails at it, or
    when it leaves out tools, calls or their results.
    """
    if not tokenizer.chat_template:
        raise InvalidRequestError(
            "this model has no chat template; start the server with --chat-template FILE, or use"
            " /v1/completions",
            param,
        )
    turns = _turns(messages)
    try:
        _check_is_read(tokenizer, turns, tools, param)
        if asked is None:
            return encode_chat(tokenizer, turns, tools=tools)
        return encode_chat(
            tokenizer,
            turns,
            add_generation_prompt=asked.add_generation_prompt is not False,
            continues=bool(asked.continue_final_message),
            tools=tools,
            variables=asked.template_variables,
        )
    except ChatTemplateError as error:
        raise InvalidRequestError(str(error), param) from error


def _turns(messages: Sequence[Message]) -> list[Turn]:
    """As templates take them: the arguments of calls as objects, where they are, and the results of calls
    with the name of what was called, which some demand."""
    names: dict[str | None, str] = {}
    turns: list[Turn] = []
    for message in messages:
        turn: dict[str, Any] = {"role": template_role(message.role)}
        turn["content"] = None if message.content is None else message.text
        if reasoning := message.reasoning_content or message.reasoning:
            turn["reasoning_content"] = reasoning
        if message.tool_calls:
            turn["tool_calls"] = [_called(call) for call in message.tool_calls]
            names.update((call.id, call.function.name) for call in message.tool_calls)
        if message.role == "tool":
            turn["tool_call_id"] = message.tool_call_id
            if message.tool_call_id in names:
                turn["name"] = names[message.tool_call_id]
        turns.append(turn)
    return turns


def _called(call: ToolCallFields) -> dict[str, Any]:
    function = {"name": call.function.name, "arguments": _object_or_text(call.function.arguments)}
    return {"id": call.id, "type": call.type, "function": function}


def _object_or_text(arguments: str) -> dict[str, Any] | str:
    """What a model wrote need not be JSON, and is sent back for it to mend."""
    try:
        read = json.loads(arguments or "{}")
    except (ValueError, RecursionError):
        return arguments
    return read if isinstance(read, dict) else arguments


def _check_is_read(tokenizer: Any, turns: Sequence[Turn], tools: Sequence[Tool], param: str) -> None:
    if tools and not reads_tools(tokenizer, tools):
        what = "this model's chat template leaves them out; start the server with --chat-template FILE"
        raise InvalidRequestError(what, "tools")
    if not any("tool_calls" in turn or turn["role"] == "tool" for turn in turns):
        return
    if lost := unread_calls(tokenizer):
        raise InvalidRequestError(f"this model's chat template leaves out {' and '.join(lost)}", param)
