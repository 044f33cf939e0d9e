"""Bodies of POST /v1/responses: declares and checks them, and reads each as a chat's."""

from __future__ import annotations

import re
from typing import Annotated, Any, ClassVar, Literal

from pydantic import BeforeValidator, Field, ValidationError, model_validator

from trimtab.guidance.ranges import shown
from trimtab.server.api import neutral
from trimtab.server.api.schemas.chats import ChatRequest, Variables
from trimtab.server.api.schemas.generation import Biases, CacheSalt, StopIds, Stops, StreamOptions, Texts
from trimtab.server.api.schemas.guidance import GuidanceFields
from trimtab.server.api.schemas.messages import (
    MAX_MESSAGES,
    CalledFunction,
    Message,
    TextPart,
    ToolCallFields,
    check_parts,
)
from trimtab.server.api.schemas.strict import StrictModel, UnicodeText, at_most
from trimtab.server.api.schemas.structured import JsonSchemaFormat, ResponseFormat
from trimtab.server.api.schemas.tools import (
    MAX_TOOLS,
    AllowedTools,
    FunctionFields,
    ToolByName,
    ToolChoice,
    ToolFields,
    ToolName,
)
from trimtab.server.engine.request import InvalidRequestError

LOGPROBS = "message.output_text.logprobs"
NOT_HERE = ("reasoning.encrypted_content",)
"""What may be included of what no reply here has."""
MAX_INCLUDED = 16


class TypedModel(StrictModel):
    """One of OpenAI's many types, of which we read TYPES: others are refused by their type, whatever their
    fields are."""

    TYPES: ClassVar[tuple[str, ...]]

    @model_validator(mode="before")
    @classmethod
    def _is_of_a_type_that_is_read(cls, data: Any) -> Any:
        found = data.get("type") if isinstance(data, dict) else None
        if found is not None and found not in cls.TYPES:
            raise InvalidRequestError(f"must be {' or '.join(cls.TYPES)}, got {shown(found)}", "type")
        return data


class Part(TypedModel):
    """Of a message, or of what a tool returned."""

    NEUTRAL = neutral.TEXT_PART
    TYPES = ("input_text", "output_text", "reasoning_text", "text")

    type: Literal["input_text", "output_text", "reasoning_text", "text"]
    text: UnicodeText


def _as_parts(content: Any) -> Any:
    return [{"type": "text", "text": content}] if isinstance(content, str) else content


Parts = Annotated[Annotated[list[Part], Field(fail_fast=True)] | None, BeforeValidator(_as_parts)]


class Item(TypedModel):
    """A message, a call that an earlier reply made, what it returned, or what the model thought."""

    NEUTRAL = neutral.RESPONSE_ITEM
    TYPES = ("message", "function_call", "function_call_output", "reasoning")
    NEEDS: ClassVar[dict[str, tuple[str, ...]]] = {
        "message": ("role", "content"),
        "function_call": ("call_id", "name", "arguments"),
        "function_call_output": ("call_id", "output"),
        "reasoning": ("content",),
    }

    type: Literal["message", "function_call", "function_call_output", "reasoning"] = "message"
    role: Literal["system", "developer", "user", "assistant"] | None = None
    content: Parts = None
    call_id: UnicodeText | None = None
    name: UnicodeText | None = None  # a label, but for a call
    arguments: UnicodeText | None = None
    output: Parts = None

    @model_validator(mode="after")
    def _has_what_its_type_has(self) -> Item:
        needs = self.NEEDS[self.type]
        given = self.model_fields_set - {"type", "name"}
        for name in needs:
            if (
                getattr(self, name) is None and self.type != "reasoning"
            ):  # of which it may have only a summary
                raise InvalidRequestError("is required", name)
        for name in type(self).model_fields:
            if name in given and name not in needs:
                raise InvalidRequestError(f"is not a {self.type}'s; leave it out", name)
        return self

    @property
    def message(self) -> dict[str, Any]:
        """A message's fields: of a message, or of what a call returned."""
        parts = self.content if self.type == "message" else self.output
        said = {"content": [TextPart(type="text", text=part.text) for part in parts or ()]}
        if self.type == "message":
            return {"role": self.role, **said}
        return {"role": "tool", "tool_call_id": self.call_id, **said}

    @property
    def call(self) -> ToolCallFields:
        """A call."""
        function = CalledFunction(name=self.name or "", arguments=self.arguments or "")
        return ToolCallFields(id=self.call_id or "", function=function)


def _as_items(value: Any) -> Any:
    return [{"role": "user", "content": value}] if isinstance(value, str) else value


class TextFormat(TypedModel):
    """`text.format`."""

    TYPES = ("text", "json_object", "json_schema")

    type: Literal["text", "json_object", "json_schema"]
    name: ToolName | None = None
    description: UnicodeText | None = None
    schema_: Annotated[dict[str, Any] | None, Field(alias="schema")] = None
    strict: bool | None = None

    @model_validator(mode="after")
    def _a_schema_where_there_should_be_one(self) -> TextFormat:
        has_schema = self.type == "json_schema"
        for name, value in (("name", self.name), ("schema", self.schema_)):
            if (value is not None) != has_schema:
                problem = "is required" if has_schema else "is only allowed with type json_schema"
                raise InvalidRequestError(problem, name)
        return self

    @property
    def chats(self) -> ResponseFormat:
        """As a chat has it."""
        if self.name is None or self.schema_ is None:
            return ResponseFormat(type=self.type)
        schema = JsonSchemaFormat.model_validate({"name": self.name, "schema": self.schema_})
        return ResponseFormat(type=self.type, json_schema=schema)


class TextFields(StrictModel):
    """`text`."""

    NEUTRAL = neutral.RESPONSE_TEXT

    format: TextFormat | None = None


class FunctionTool(TypedModel, FunctionFields):
    """A tool that may be called, its function's fields beside its type."""

    NEUTRAL = neutral.TOOL
    TYPES = ("function",)

    type: Literal["function"]

    @property
    def chats(self) -> ToolFields:
        """As a chat has it."""
        return ToolFields(type="function", function=FunctionFields(**self.model_dump(exclude={"type"})))


class Allowed(TypedModel):
    """One of the tools that may be called."""

    TYPES = ("function",)

    type: Literal["function"]
    name: UnicodeText


class Choice(TypedModel):
    """A word alone; function and its name; or allowed_tools, with their names and whether one of them has to
    be called."""

    TYPES = ("none", "auto", "required", "function", "allowed_tools")
    HAS: ClassVar[dict[str, str]] = {"name": "function", "mode": "allowed_tools", "tools": "allowed_tools"}

    type: Literal["none", "auto", "required", "function", "allowed_tools"]
    name: UnicodeText | None = None
    mode: Literal["auto", "required"] | None = None
    tools: Annotated[
        Annotated[list[Allowed], Field(min_length=1, fail_fast=True)] | None, at_most(MAX_TOOLS, "tools")
    ] = None

    @model_validator(mode="after")
    def _what_its_type_has(self) -> Choice:
        for name, kind in self.HAS.items():
            is_given = getattr(self, name) is not None
            if (self.type == kind) != is_given:
                problem = f"is only allowed with type {kind}" if is_given else "is required"
                raise InvalidRequestError(problem, name)
        return self

    @property
    def chats(self) -> ToolChoice:
        """As a chat has it."""
        function = None if self.name is None else ToolByName(name=self.name)
        if self.mode is None:
            return ToolChoice(type=self.type, function=function)
        named = [{"type": "function", "function": {"name": tool.name}} for tool in self.tools or ()]
        allowed = AllowedTools.model_validate({"mode": self.mode, "tools": named})
        return ToolChoice(type=self.type, allowed_tools=allowed)

    @property
    def sent(self) -> Any:
        sent = self.model_dump(exclude_none=True)
        return self.type if len(sent) == 1 else sent


def _as_choice(choice: Any) -> Any:
    return {"type": choice} if isinstance(choice, str) else choice


class ReasoningFields(StrictModel):
    """`reasoning`. effort: for chat templates that read it."""

    NEUTRAL = neutral.REASONING

    effort: UnicodeText | None = None


class ResponsesRequest(StrictModel):
    """The body of POST /v1/responses.

    It stands alone: what was said before is sent again. What OpenAI's own has not, from `top_k` on, is as in
    chats.
    """

    NEUTRAL = neutral.RESPONSE
    OFF = neutral.OFF

    model: str | None = None
    input: Annotated[
        list[Item],
        Field(min_length=1, fail_fast=True),
        BeforeValidator(check_parts),
        BeforeValidator(_as_items),
        at_most(MAX_MESSAGES, "items"),
    ]
    instructions: UnicodeText | None = None
    max_output_tokens: int | None = None
    temperature: float | None = None
    top_p: float | None = None
    text: TextFields | None = None
    tools: Annotated[
        Annotated[list[FunctionTool], Field(fail_fast=True)] | None, at_most(MAX_TOOLS, "tools")
    ] = None
    tool_choice: Annotated[Choice | None, BeforeValidator(_as_choice)] = None
    parallel_tool_calls: bool | None = None
    reasoning: ReasoningFields | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    top_k: int | None = None
    min_p: float | None = None
    stop: Stops = None
    stop_token_ids: StopIds = None
    seed: int | None = None
    ignore_eos: bool | None = None
    logit_bias: Biases = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    repetition_penalty: float | None = None
    chat_template_kwargs: Variables | None = None
    include: Annotated[Texts | None, at_most(MAX_INCLUDED, "things")] = None
    top_logprobs: int | None = None
    cache_salt: CacheSalt | None = None
    guidance: GuidanceFields | None = None

    @model_validator(mode="after")
    def _what_can_be_included(self) -> ResponsesRequest:
        for name in self.include or ():
            if name not in (LOGPROBS, *NOT_HERE):
                raise InvalidRequestError(f"{shown(name)} is not supported; there is {LOGPROBS}", "include")
        if self.top_logprobs and not self.tells_logprobs:
            raise InvalidRequestError(f"is only allowed with include: [{LOGPROBS!r}]", "top_logprobs")
        return self

    @property
    def tells_logprobs(self) -> bool:
        return LOGPROBS in (self.include or ())

    @property
    def chats(self) -> ChatRequest:
        """As a chat has it. Raises InvalidRequestError for what is checked there, as tools are."""
        asked = {name: getattr(self, name) for name in _SAME_NAME}
        format = None if self.text is None else self.text.format
        try:
            return ChatRequest(
                messages=self._messages,
                max_completion_tokens=self.max_output_tokens,
                logprobs=self.tells_logprobs or None,
                response_format=format.chats if format else None,
                tools=[tool.chats for tool in self.tools or ()],
                tool_choice=self.tool_choice.chats if self.tool_choice else None,
                reasoning_effort=self.reasoning.effort if self.reasoning else None,
                **asked,
            )
        except ValidationError as error:
            first = error.errors()[0]
            if isinstance(cause := first.get("ctx", {}).get("error"), InvalidRequestError):
                raise cause from error
            raise InvalidRequestError(first["msg"], ".".join(map(str, first["loc"]))) from error

    @property
    def _messages(self) -> list[Message]:
        """Calls are their reply's, several of them one message's; so is what was thought before it."""
        found: list[dict[str, Any]] = []
        if self.instructions is not None:
            found.append({"role": "system", "content": [TextPart(type="text", text=self.instructions)]})
        thought = ""
        for item in self.input:
            if item.type == "reasoning":
                thought += "\n".join(part.text for part in item.content or ())
                continue
            if item.type != "function_call":
                found.append(item.message)
            else:
                if thought or not found or found[-1]["role"] != "assistant":
                    found.append({"role": "assistant"})
                found[-1].setdefault("tool_calls", []).append(item.call)
            if thought and found[-1]["role"] == "assistant":
                found[-1]["reasoning_content"] = thought
            thought = ""
        return [Message(**fields) for fields in found]


_SAME_NAME = [
    name
    for name in ResponsesRequest.model_fields
    if name in ChatRequest.model_fields and name not in ("tools", "tool_choice", "stream_options")
]
_NAMES = {
    "messages": "input",
    "max_completion_tokens": "max_output_tokens",
    "response_format": "text.format",
    "response_format.json_schema.schema": "text.format.schema",
}

_FUNCTION = r"^(tools\[\d+\]|tool_choice)(?:\.allowed_tools)?(\.tools\[\d+\])?\.function"


def name_of(chats: str) -> str:
    """What a chat's field is called here."""
    return _NAMES.get(chats) or re.sub(_FUNCTION, r"\1\2", chats)
