"""Response schemas: describe in /openapi.json what POST /v1/responses answers."""

from __future__ import annotations

from typing import Any, Literal

from trimtab.server.api.schemas.replies import CachedTokens, GuidanceReply, ReplyModel

Status = Literal["completed", "incomplete"]


class OutputText(ReplyModel):
    type: Literal["output_text"]
    text: str
    annotations: list[Any]
    logprobs: list[Any]


class ReasoningText(ReplyModel):
    type: Literal["reasoning_text"]
    text: str


class OutputItem(ReplyModel):
    id: str
    status: Status


class MessageItem(OutputItem):
    type: Literal["message"]
    role: Literal["assistant"]
    content: list[OutputText]


class ReasoningItem(OutputItem):
    type: Literal["reasoning"]
    summary: list[Any]
    content: list[ReasoningText]


class FunctionCallItem(OutputItem):
    type: Literal["function_call"]
    call_id: str
    name: str
    arguments: str


class InputTokens(CachedTokens):
    cache_write_tokens: int


class OutputTokens(ReplyModel):
    reasoning_tokens: int


class ResponseUsage(ReplyModel):
    input_tokens: int
    input_tokens_details: InputTokens
    output_tokens: int
    output_tokens_details: OutputTokens
    total_tokens: int
    computed_tokens: int


class IncompleteDetails(ReplyModel):
    reason: Literal["max_output_tokens"]


class ResponseReply(ReplyModel):
    """The reply of POST /v1/responses."""

    id: str
    object: Literal["response"]
    created_at: int
    completed_at: int | None = None
    model: str
    status: Status
    error: None
    incomplete_details: IncompleteDetails | None
    output: list[MessageItem | ReasoningItem | FunctionCallItem]
    usage: ResponseUsage
    guidance: GuidanceReply
    instructions: str | None
    max_output_tokens: int | None
    temperature: float
    top_p: float
    text: dict[str, Any]
    tools: list[dict[str, Any]]
    tool_choice: str | dict[str, Any]
    parallel_tool_calls: bool
    truncation: Literal["disabled"]
    background: Literal[False]
    store: Literal[False]
    previous_response_id: None
    metadata: None
