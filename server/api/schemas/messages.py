"""Messages of a conversation, as bodies carry them."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, model_validator

from trimtab.server.api import neutral
from trimtab.server.api.schemas.strict import StrictModel, UnicodeText, at_most
from trimtab.server.engine.request import InvalidRequestError

MAX_MESSAGES = 4096
MAX_PARTS = 16_384  # of a conversation, and calls of tools


class TextPart(StrictModel):
    """The one kind of content part that is supported."""

    NEUTRAL = neutral.TEXT_PART

    type: Literal["text"]
    text: UnicodeText


PartList = Annotated[list[TextPart], Field(fail_fast=True)]


def _as_parts(content: Any) -> Any:
    return [{"type": "text", "text": content}] if isinstance(content, str) else content


class CalledFunction(StrictModel):
    """arguments: JSON, as the model wrote it."""

    NEUTRAL = neutral.CALLED

    name: UnicodeText
    arguments: UnicodeText


class ToolCallFields(StrictModel):
    """A call that an earlier reply made."""

    NEUTRAL = neutral.CALL

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


def check_parts(messages: Any) -> Any:
    """Before any of them is looked at."""
    if not isinstance(messages, list):
        return messages
    names = ("content", "tool_calls", "output")
    held = (m.get(name) for m in messages if isinstance(m, dict) for name in names)
    num_parts = sum(len(parts) for parts in held if isinstance(parts, list))
    if num_parts > MAX_PARTS:
        raise ValueError(f"has {num_parts} content parts and tool calls, of at most {MAX_PARTS}")
    return messages


Messages = Annotated[
    list[Message], Field(fail_fast=True), BeforeValidator(check_parts), at_most(MAX_MESSAGES, "messages")
]
