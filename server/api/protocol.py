"""Protocol: declares and checks the bodies that requests may carry.

Types are strict, unknown fields are refused, and NaN and infinity are no numbers. Null means "left out".
Ranges are checked where the engine's own dataclasses are built, so each limit exists once. Fields that we do
not implement are refused by name unless they ask for nothing (see trimtab.server.api.neutral).
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from typing import Annotated, Any, ClassVar, Literal, Self, get_args

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, model_validator

from trimtab.guidance.controllers import CONTROLLERS, HORIZON
from trimtab.guidance.ranges import shown
from trimtab.guidance.text.render import TEMPLATE_VARIABLES
from trimtab.server.api import neutral
from trimtab.server.engine.request import (
    MAX_BAD_WORDS,
    MAX_LOGIT_BIAS,
    MAX_STOPS,
    InvalidRequestError,
)

MAX_PROMPTS = 2048
MAX_REPLIES = 4096  # prompts times the replies to each
MAX_TOOLS = 128
MAX_MESSAGES = 4096
MAX_PARTS = 16_384  # of a conversation, and calls of tools
MAX_HEADS = 256
MAX_OPTIONS = 32  # of a rule
MAX_VARIABLES = 1024  # of a chat template
MAX_CHOICES = 2**16  # that a reply may be one of
MAX_TOKENS = 2**17  # that are read as text


class StrictModel(BaseModel):
    """Refuses unknown fields, wrong types, and what is not supported."""

    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False, frozen=True)

    NEUTRAL: ClassVar[neutral.Harmless] = {}
    OFF: ClassVar[Mapping[str, tuple[object, object]]] = {}

    @model_validator(mode="before")
    @classmethod
    def _keep_what_is_asked(cls, data: Any) -> Any:
        if not isinstance(data, dict):
            return data
        kept, known = {}, _names(cls)
        for name, value in data.items():
            if value is None:
                continue
            if name in cls.NEUTRAL:
                if not neutral.asks_for_nothing(value, cls.NEUTRAL[name]):
                    raise InvalidRequestError(neutral.refusal(cls.NEUTRAL[name]), name)
            elif name in known or cls.model_config["extra"] == "allow":
                written, meant = cls.OFF.get(name, (None, None))
                kept[name] = meant if neutral.asks_for_nothing(value, (written,)) else value
            else:
                named = name.encode(
                    errors="backslashreplace"
                ).decode()  # pydantic cannot write half a character
                raise InvalidRequestError(neutral.unknown(named, [*known, *cls.NEUTRAL]), named)
        return kept


@cache
def _names(kind: type[BaseModel]) -> dict[str, None]:
    """Of the fields, as they are sent."""
    return dict.fromkeys(field.alias or name for name, field in kind.model_fields.items())


def at_most(most: int, what: str) -> BeforeValidator:
    """Of a list or an object, before any of it is looked at."""

    def check(value: Any) -> Any:
        if isinstance(value, list | dict) and len(value) > most:
            raise ValueError(f"has {len(value)} {what}, of at most {most}")
        return value

    return BeforeValidator(check)


def _check_unicode(text: str) -> str:
    """JSON can escape half of a surrogate pair, which no tokenizer takes."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise ValueError("is no Unicode text: it holds half of a surrogate pair") from error
    return text


UnicodeText = Annotated[str, AfterValidator(_check_unicode)]


class TextPart(StrictModel):
    """The one kind of content part that is supported."""

    NEUTRAL = neutral.TEXT_PART

    type: Literal["text"]
    text: UnicodeText


PartList = Annotated[list[TextPart], Field(fail_fast=True)]


def _as_parts(content: Any) -> Any:
    return [{"type": "text", "text": content}] if isinstance(content, str) else content


ToolName = Annotated[str, Field(pattern=r"^[a-zA-Z0-9_-]{1,64}$")]


class CalledFunction(StrictModel):
    """arguments: JSON, as the model wrote it."""

    name: UnicodeText
    arguments: UnicodeText


class ToolCallFields(StrictModel):
    """A call that an earlier reply made."""

    id: UnicodeText
    type: Literal["function"] = "function"
    function: CalledFunction


class Message(StrictModel):
    """`developer` is OpenAI's newer word for `system` and is read as that. content: None where the assistant
    calls tools and says nothing."""

    NEUTRAL = neutral.MESSAGE

    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: Annotated[PartList | None, BeforeValidator(_as_parts)] = None
    tool_calls: Annotated[list[ToolCallFields], Field(fail_fast=True)] | None = None
    tool_call_id: UnicodeText | None = None
    reasoning_content: UnicodeText | None = None
    reasoning: UnicodeText | None = None

    @model_validator(mode="after")
    def _calls_and_their_results_where_they_belong(self) -> Message:
        if self.tool_calls and self.role != "assistant":
            raise InvalidRequestError("is the assistant's; leave it out", "tool_calls")
        if (self.tool_call_id is not None) != (self.role == "tool"):
            problem = "is required of role tool" if self.role == "tool" else "is only allowed with role tool"
            raise InvalidRequestError(problem, "tool_call_id")
        if self.content is None and not self.tool_calls:
            raise InvalidRequestError("is required", "content")
        return self

    @property
    def text(self) -> str:
        """The parts, a line each."""
        return "\n".join(part.text for part in self.content or ())


class StreamOptions(StrictModel):
    """include_usage: a last chunk with the token counts. continuous_usage_stats: those so far in every chunk
    before it, too."""

    NEUTRAL = neutral.STREAM_OPTIONS

    include_usage: bool | None = None
    continuous_usage_stats: bool | None = None


def _check_parts(messages: Any) -> Any:
    """Before any of them is looked at."""
    if not isinstance(messages, list):
        return messages
    held = (m.get(name) for m in messages if isinstance(m, dict) for name in ("content", "tool_calls"))
    num_parts = sum(len(parts) for parts in held if isinstance(parts, list))
    if num_parts > MAX_PARTS:
        raise ValueError(f"has {num_parts} content parts and tool calls, of at most {MAX_PARTS}")
    return messages


Messages = Annotated[
    list[Message], Field(fail_fast=True), BeforeValidator(_check_parts), at_most(MAX_MESSAGES, "messages")
]


def _as_messages(prompt: Any) -> Any:
    return [{"role": "system", "content": prompt}] if isinstance(prompt, str) else prompt


class RuleFields(StrictModel):
    """The `rule` of a `guidance` object: its kind and the options which that has, that the engine knows and
    checks; but for a prompt, which is text or messages here and token ids there. Text is a system message."""

    model_config = ConfigDict(extra="allow")

    kind: str
    negative_prompt: Annotated[Messages | None, BeforeValidator(_as_messages)] = None

    @property
    def options(self) -> dict[str, Any]:
        """Those that are given, but the prompt."""
        return {name: value for name, value in (self.model_extra or {}).items() if value is not None}


def _as_rule(rule: Any) -> Any:
    return {"kind": rule} if isinstance(rule, str) else rule


class TargetFields(StrictModel):
    """See trimtab.guidance.controllers.target."""

    head: UnicodeText
    value: float


class ScheduleFields(StrictModel):
    """See trimtab.guidance.controllers.schedule."""

    kind: Literal["constant", "warmup", "decay"]
    tokens: int | None = None


class GuidanceFields(StrictModel):
    """The `guidance` object: which heads steer this request, how hard, and what controls it.

    A controller has a field of its name in trimtab.guidance.controllers.CONTROLLERS.
    """

    strength: float | None = None
    heads: Annotated[dict[str, float] | None, at_most(MAX_HEADS, "heads")] = None
    trace: bool | None = None
    rule: Annotated[RuleFields | None, BeforeValidator(_as_rule), at_most(MAX_OPTIONS, "options")] = None
    max_kl: float | None = None
    kl_budget: float | None = None
    target: TargetFields | None = None
    horizon: int | None = None
    schedule: ScheduleFields | None = None
    entropy_gate: float | None = None
    on: Literal["all", "reasoning", "answer"] | None = None

    @property
    def controllers(self) -> dict[str, Any]:
        """Settings as read_controllers takes them; empty where no controller is asked for."""
        return self.model_dump(include={*CONTROLLERS, HORIZON}, exclude_none=True)


class JsonSchemaFormat(StrictModel):
    """`response_format.json_schema`. strict: the reply keeps to the schema whether it is asked to or not."""

    name: Annotated[str, Field(pattern=r"^[a-zA-Z0-9_-]{1,64}$")]
    description: str | None = None
    schema_: Annotated[dict[str, Any], Field(alias="schema")]
    strict: bool | None = None


class ResponseFormat(StrictModel):
    """OpenAI's `response_format`."""

    type: Literal["text", "json_object", "json_schema"]
    json_schema: JsonSchemaFormat | None = None

    @model_validator(mode="after")
    def _a_schema_where_there_should_be_one(self) -> ResponseFormat:
        if (self.type == "json_schema") != (self.json_schema is not None):
            problem = "is required" if self.json_schema is None else "is only allowed with type json_schema"
            raise InvalidRequestError(problem, "json_schema")
        return self


Choices = Annotated[list[UnicodeText], Field(min_length=1, fail_fast=True), at_most(MAX_CHOICES, "choices")]


def _check_schema(schema: Any) -> Any:
    if not isinstance(schema, dict | str):
        raise ValueError("must be a JSON schema, as an object or as its text")
    return _check_unicode(schema) if isinstance(schema, str) else schema


JsonSchema = Annotated[Any, AfterValidator(_check_schema)]


class StructuredOutputs(StrictModel):
    """vLLM's `structured_outputs`: one of its keys."""

    NEUTRAL = neutral.STRUCTURED_OUTPUTS

    json_: Annotated[JsonSchema | None, Field(alias="json")] = None
    regex: UnicodeText | None = None
    choice: Choices | None = None
    grammar: UnicodeText | None = None
    json_object: bool | None = None

    @property
    def given(self) -> dict[str, Any]:
        """By vLLM's names."""
        every = {"json": self.json_, "regex": self.regex, "choice": self.choice, "grammar": self.grammar}
        return {name: value for name, value in every.items() if value is not None}


class MajorityFields(StrictModel):
    """Self-consistency: how a reply's answer is found, and whether votes are weighted by reward."""

    pattern: UnicodeText
    weighted: bool | None = None


class RejectionFields(StrictModel):
    """Speculative rejection: every so many tokens the better share of the replies goes on."""

    every: int
    share: float | None = None


Strings = Annotated[list[UnicodeText], Field(fail_fast=True)]
TokenIds = Annotated[list[int], Field(fail_fast=True)]
Variables = Annotated[dict[str, Any], at_most(MAX_VARIABLES, "variables")]


def _check_biases(biases: Any) -> Any:
    """Up to the first that is none."""
    for key, bias in biases.items() if isinstance(biases, dict) else ():
        if isinstance(bias, bool) or not isinstance(bias, int | float):
            raise ValueError(f"{shown(key)} must be given a number, got {shown(bias)}")
    return biases


def _as_stop_list(stop: Any) -> Any:
    return [stop] if isinstance(stop, str) else stop


StopList = Annotated[Strings | None, BeforeValidator(_as_stop_list), at_most(MAX_STOPS, "strings")]
StopTokens = Annotated[TokenIds | None, at_most(MAX_STOPS, "tokens")]
Biases = Annotated[dict[str, float] | None, BeforeValidator(_check_biases), at_most(MAX_LOGIT_BIAS, "tokens")]


class GenerationRequest(StrictModel):
    """What chat and completions share.

    `model` may be left out: a server has one. `guided_…` are vLLM's older names of what `structured_outputs`
    holds.
    """

    NEUTRAL = neutral.GENERATION
    OFF = neutral.OFF

    model: str | None = None
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    min_p: float | None = None
    n: int | None = None
    best_of: int | None = None
    majority: MajorityFields | None = None
    speculative_rejection: RejectionFields | None = None
    max_tokens: int | None = None
    stop: StopList = None
    seed: int | None = None
    ignore_eos: bool | None = None
    logit_bias: Biases = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    repetition_penalty: float | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    guidance: GuidanceFields | None = None
    response_format: ResponseFormat | None = None
    structured_outputs: StructuredOutputs | None = None
    prompt_logprobs: int | None = None
    truncate_prompt_tokens: int | None = None
    min_tokens: int | None = None
    stop_token_ids: StopTokens = None
    include_stop_str_in_output: bool | None = None
    bad_words: Annotated[Strings | None, at_most(MAX_BAD_WORDS, "words")] = None
    guided_json: JsonSchema | None = None
    guided_regex: UnicodeText | None = None
    guided_choice: Choices | None = None
    guided_grammar: UnicodeText | None = None

    @property
    def guided(self) -> dict[str, Any]:
        """By the names of `structured_outputs`, what is given under vLLM's older ones."""
        every = {
            "json": self.guided_json,
            "regex": self.guided_regex,
            "choice": self.guided_choice,
            "grammar": self.guided_grammar,
        }
        return {name: value for name, value in every.items() if value is not None}

    @model_validator(mode="after")
    def _stream_options_need_a_stream(self) -> GenerationRequest:
        if self.wants_usage_chunk and not self.stream:
            raise InvalidRequestError("is only allowed with stream: true", "stream_options")
        return self

    @model_validator(mode="after")
    def _prompt_logprobs_come_with_a_whole_reply(self) -> GenerationRequest:
        if self.prompt_logprobs is not None and self.stream:
            raise InvalidRequestError("is not told in streams; leave one of them out", "prompt_logprobs")
        return self

    @property
    def engine_fields(self) -> Mapping[str, str]:
        """Fields of the engine's request that have another name here."""
        return {}

    @property
    def wants_usage_chunk(self) -> bool:
        return self.stream_options is not None and bool(self.stream_options.include_usage)

    @property
    def wants_usage_in_chunks(self) -> bool:
        return self.stream_options is not None and bool(self.stream_options.continuous_usage_stats)


class FunctionFields(StrictModel):
    """parameters: the JSON schema of the arguments, an object's; without it there are none. strict: calls
    keep to it also where they are not demanded."""

    name: ToolName
    description: UnicodeText | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None

    @model_validator(mode="after")
    def _arguments_are_an_object(self) -> FunctionFields:
        kind = (self.parameters or {}).get("type", "object")
        if kind != "object":
            raise InvalidRequestError(f'must be "object", got {shown(kind)}', "parameters.type")
        return self


_OTHER_PROPERTIES = {
    *("additionalProperties", "unevaluatedProperties", "patternProperties"),
    *("$ref", "allOf", "anyOf", "oneOf", "if", "dependentSchemas"),
}
"""Keywords of a schema that may name more properties, or say what is done with others."""


class ToolFields(StrictModel):
    """A tool that may be called."""

    type: Literal["function"]
    function: FunctionFields

    @property
    def schema_(self) -> dict[str, Any]:
        """Of the arguments. No tool takes what its properties do not name, though a schema that says nothing
        of others allows them."""
        given = self.function.parameters
        schema = {"type": "object", **({"properties": {}} if given is None else given)}
        is_plain = "properties" in schema and not schema.keys() & _OTHER_PROPERTIES
        return {**schema, "additionalProperties": False} if is_plain else schema

    @property
    def templated(self) -> dict[str, Any]:
        """As a chat template takes it; many write the description whether there is one or not."""
        function = {"name": self.function.name, "description": self.function.description or ""}
        parameters = self.function.parameters or {"type": "object", "properties": {}}
        return {"type": "function", "function": {**function, "parameters": parameters}}


class ToolByName(StrictModel):
    """A tool's name."""

    name: UnicodeText


class ToolChoice(StrictModel):
    """A word alone, or function: the one tool that a reply must call."""

    type: Literal["none", "auto", "required", "function"]
    function: ToolByName | None = None

    @property
    def demands(self) -> bool:
        return self.type in ("required", "function")

    @model_validator(mode="after")
    def _a_function_where_there_should_be_one(self) -> ToolChoice:
        if (self.type == "function") != (self.function is not None):
            problem = "is required" if self.function is None else "is only allowed with type function"
            raise InvalidRequestError(problem, "function")
        return self


ToolWord = Literal["none", "auto", "required"]


def _as_tool_choice(choice: Any) -> Any:
    if isinstance(choice, str) and choice not in get_args(ToolWord):
        what = 'must be "none", "auto", "required", or {"type": "function", "function": {"name": …}}'
        raise ValueError(f"{what}, got {shown(choice)}")
    return {"type": choice} if isinstance(choice, str) else choice


ToolList = Annotated[list[ToolFields], Field(fail_fast=True)]


class ChatRendering(StrictModel):
    """How a conversation is written for the model: with the beginning of a reply behind it (the default),
    with its last message open-ended, and with what else the chat template reads. An effort of reasoning is
    one of those things."""

    add_generation_prompt: bool | None = None
    continue_final_message: bool | None = None
    chat_template_kwargs: Variables | None = None
    reasoning_effort: UnicodeText | None = None

    @model_validator(mode="after")
    def _one_end_and_no_variable_twice(self) -> Self:
        if self.add_generation_prompt and self.continue_final_message:
            what = "goes on with the last message, and add_generation_prompt behind it; give one"
            raise InvalidRequestError(what, "continue_final_message")
        for name in self.chat_template_kwargs or {}:
            if name in TEMPLATE_VARIABLES:
                raise InvalidRequestError("has a field of its own; give that", f"chat_template_kwargs.{name}")
        return self

    @property
    def template_variables(self) -> dict[str, Any]:
        """Of the chat template, beside the conversation."""
        effort = {} if self.reasoning_effort is None else {"reasoning_effort": self.reasoning_effort}
        return effort | (self.chat_template_kwargs or {})


class ChatRequest(GenerationRequest, ChatRendering):
    """The body of POST /v1/chat/completions."""

    NEUTRAL = neutral.CHAT

    messages: Annotated[Messages, Field(min_length=1)]
    max_completion_tokens: int | None = None
    logprobs: bool | None = None
    top_logprobs: int | None = None
    tools: Annotated[ToolList | None, at_most(MAX_TOOLS, "tools")] = None
    tool_choice: Annotated[
        ToolChoice | None,
        BeforeValidator(_as_tool_choice, json_schema_input_type=ToolWord | ToolChoice | None),
    ] = None
    parallel_tool_calls: bool | None = None

    @model_validator(mode="after")
    def _tools_can_be_told_apart_and_chosen(self) -> ChatRequest:
        names = [tool.function.name for tool in self.tools or ()]
        for at, name in enumerate(names):
            if name in names[:at]:
                what = f"{name} is another tool's name too; each needs one of its own"
                raise InvalidRequestError(what, f"tools[{at}].function.name")
        choice = self.tool_choice
        if choice is not None and choice.demands and not names:
            raise InvalidRequestError("demands a call; give tools", "tool_choice")
        if choice is not None and choice.function is not None and choice.function.name not in names:
            what = f"no tool is called {shown(choice.function.name)}; there are {', '.join(names)}"
            raise InvalidRequestError(what, "tool_choice.function.name")
        return self

    @model_validator(mode="after")
    def _logprobs_before_top_logprobs(self) -> ChatRequest:
        if self.top_logprobs and not self.logprobs:
            raise InvalidRequestError("is only allowed with logprobs: true", "top_logprobs")
        return self

    @property
    def engine_fields(self) -> Mapping[str, str]:
        is_old = self.max_completion_tokens is None and self.max_tokens is not None
        limit = "max_tokens" if is_old else "max_completion_tokens"
        return {"prompt": "messages", "max_tokens": limit, "logprobs": "top_logprobs"}


def _is_ids(value: object) -> bool:
    return isinstance(value, list) and set(map(type, value)) <= {int}


def _as_prompt_list(prompt: object) -> list[str | list[int]]:
    if prompt and _is_ids(prompt):
        return [prompt]  # type: ignore[list-item]
    prompts = [prompt] if isinstance(prompt, str) else prompt
    if not isinstance(prompts, list) or not prompts:
        raise ValueError("must be a string, token ids, or a non-empty list of either")
    if len(prompts) > MAX_PROMPTS:
        raise ValueError(f"has {len(prompts)} prompts, of at most {MAX_PROMPTS}; send several requests")
    for item in prompts:
        if isinstance(item, str):
            _check_unicode(item)
        elif not _is_ids(item):
            raise ValueError("must be a string, token ids, or a list of either")
    return prompts


class CompletionRequest(GenerationRequest):
    """The body of POST /v1/completions.

    prompt: a list of prompts, each text or token ids, whichever of OpenAI's four forms was sent.
    """

    NEUTRAL = neutral.COMPLETION

    prompt: Annotated[Any, AfterValidator(_as_prompt_list)]
    logprobs: int | None = None
    echo: bool | None = None

    @model_validator(mode="after")
    def _not_too_many_replies(self) -> CompletionRequest:
        name = "n" if self.best_of is None else "best_of"
        each = self.n or 1 if self.best_of is None else self.best_of
        if len(self.prompt) * each > MAX_REPLIES:
            what = f"to {len(self.prompt)} prompts makes {len(self.prompt) * each} replies, of at most"
            raise InvalidRequestError(f"{shown(each)} {what} {MAX_REPLIES}; send several requests", name)
        return self

    @model_validator(mode="after")
    def _no_tokens_only_where_a_prompt_is_told_of(self) -> CompletionRequest:
        if self.max_tokens != 0:
            return self
        if not self.echo and self.prompt_logprobs is None:
            what = "must be at least 1, or 0 with echo or prompt_logprobs; got 0"
            raise InvalidRequestError(what, "max_tokens")
        asked = {"n": (self.n or 1) > 1, "best_of": (self.best_of or 1) > 1, "stream": self.stream}
        for name, is_asked in asked.items():
            if is_asked:
                raise InvalidRequestError("is for replies, and max_tokens is 0; leave one of them out", name)
        return self


class ScoreRequest(StrictModel):
    """The body of POST /v1/score: a conversation whose last message is the reply, or a prompt and what
    completes it."""

    NEUTRAL = neutral.LABELS

    model: str | None = None
    messages: Annotated[Messages, Field(min_length=2)] | None = None
    prompt: UnicodeText | None = None
    completion: UnicodeText | None = None
    guidance: GuidanceFields | None = None

    @model_validator(mode="after")
    def _one_text(self) -> ScoreRequest:
        if (self.messages is None) == (self.prompt is None or self.completion is None):
            raise InvalidRequestError("is one of two; give messages, or prompt and completion", "messages")
        if self.messages is not None and self.messages[-1].role != "assistant":
            what = "must be 'assistant': the last message is the reply that is scored"
            raise InvalidRequestError(what, f"messages[{len(self.messages) - 1}].role")
        return self

    @property
    def engine_fields(self) -> Mapping[str, str]:
        """Fields of the engine's request that have another name here."""
        return {"prompt": "prompt" if self.messages is None else "messages"}


class TokenizeRequest(ChatRendering):
    """The body of POST /tokenize: a text or a conversation, as vLLM takes them."""

    NEUTRAL = neutral.LABELS

    model: str | None = None
    prompt: UnicodeText | None = None
    messages: Annotated[Messages, Field(min_length=1)] | None = None
    add_special_tokens: bool | None = None
    return_token_strs: bool | None = None

    @model_validator(mode="after")
    def _one_text(self) -> TokenizeRequest:
        if (self.messages is None) == (self.prompt is None):
            raise InvalidRequestError("is one of two; give prompt or messages", "prompt")
        if self.messages is not None and self.add_special_tokens:
            raise InvalidRequestError("is for prompt; a chat template writes its own", "add_special_tokens")
        return self


class DetokenizeRequest(StrictModel):
    """The body of POST /detokenize."""

    NEUTRAL = neutral.LABELS

    model: str | None = None
    tokens: Annotated[TokenIds, at_most(MAX_TOKENS, "tokens")]
