"""Chat requests: the body of POST /v1/chat/completions, and how conversations are rendered."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Self

from pydantic import BeforeValidator, Field, model_validator

from trimtab.guidance.ranges import shown
from trimtab.guidance.text.render import TEMPLATE_VARIABLES
from trimtab.server.api import neutral
from trimtab.server.api.schemas.generation import GenerationRequest
from trimtab.server.api.schemas.messages import Messages
from trimtab.server.api.schemas.strict import StrictModel, UnicodeText, at_most
from trimtab.server.api.schemas.tools import MAX_TOOLS, ToolChoice, ToolList, ToolWord, as_tool_choice
from trimtab.server.engine.request import InvalidRequestError

MAX_VARIABLES = 1024  # of a chat template
Variables = Annotated[dict[str, Any], at_most(MAX_VARIABLES, "variables")]


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
        BeforeValidator(as_tool_choice, json_schema_input_type=ToolWord | ToolChoice | None),
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
        for name, field in ((choice and choice.names) or {}).items():
            if name not in names:
                what = f"no tool is called {shown(name)}; there are {', '.join(names) or 'none'}"
                raise InvalidRequestError(what, f"tool_choice.{field}")
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
