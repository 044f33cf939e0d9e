"""Reply schemas: describe in /openapi.json what routes answer; only tests check replies against them.

Fields with a default may be left out.
"""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict

from trimtab.server.api.errors import ERROR_REPLIES

FinishReason = Literal["stop", "length", "tool_calls"]
ByHead = dict[str, float]


class ReplyModel(BaseModel):
    """All fields that there are."""

    model_config = ConfigDict(extra="forbid")


class CachedTokens(ReplyModel):
    cached_tokens: int


class UsageReply(ReplyModel):
    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: CachedTokens
    computed_tokens: int


class TokenLogprob(ReplyModel):
    token: str
    logprob: float


class TraceEntry(TokenLogprob):
    value: ByHead
    kl: float
    strength: float
    entropy: float
    base_logprob: float
    flip: bool
    base_top: list[TokenLogprob]
    part: Literal["reasoning", "answer"] | None = None


class StepReply(ReplyModel):
    tokens: int
    value: ByHead


class VoteReply(ReplyModel):
    answer: str | None
    weight: float
    share: float


class SummaryReply(ReplyModel):
    kl: float
    mean_strength: float
    value: ByHead
    reward: ByHead
    flips: int
    rule: dict[str, float] | None = None
    steps: list[StepReply] | None = None


class GuidanceReply(SummaryReply):
    vote: VoteReply | None = None
    trace: list[TraceEntry] | None = None


class CalledFunctionReply(ReplyModel):
    name: str
    arguments: str


class ToolCallReply(ReplyModel):
    id: str
    type: Literal["function"]
    function: CalledFunctionReply


class MessageReply(ReplyModel):
    role: Literal["assistant"]
    content: str | None
    reasoning_content: str | None = None
    tool_calls: list[ToolCallReply] | None = None
    refusal: None


class ChatTokenLogprob(TokenLogprob):
    bytes: list[int]


class ChatToken(ChatTokenLogprob):
    top_logprobs: list[ChatTokenLogprob]


class ChatLogprobs(ReplyModel):
    content: list[ChatToken]
    refusal: None


class ChoiceReply(ReplyModel):
    index: int
    finish_reason: FinishReason
    stop_reason: str | int | None
    guidance: GuidanceReply


class ChatChoice(ChoiceReply):
    message: MessageReply
    logprobs: ChatLogprobs | None


class PromptToken(ReplyModel):
    logprob: float
    rank: int | None
    decoded_token: str


PromptLogprobs = list[dict[str, PromptToken] | None]


class FrameReply(ReplyModel):
    id: str
    created: int
    model: str
    usage: UsageReply


class ChatReply(FrameReply):
    """The reply of POST /v1/chat/completions."""

    object: Literal["chat.completion"]
    choices: list[ChatChoice]
    prompt_logprobs: PromptLogprobs | None = None


class CompletionLogprobs(ReplyModel):
    tokens: list[str]
    token_logprobs: list[float | None]
    top_logprobs: list[dict[str, float] | None]
    text_offset: list[int]


class CompletionChoice(ChoiceReply):
    text: str
    logprobs: CompletionLogprobs | None
    prompt_logprobs: PromptLogprobs | None = None


class CompletionReply(FrameReply):
    """The reply of POST /v1/completions."""

    object: Literal["text_completion"]
    choices: list[CompletionChoice]


class ScoreReply(FrameReply, SummaryReply):
    """The reply of POST /v1/score."""

    object: Literal["score"]
    tokens: list[TraceEntry]


class TokenizeReply(ReplyModel):
    """The reply of POST /tokenize."""

    count: int
    max_model_len: int
    tokens: list[int]
    token_strs: list[str] | None


class DetokenizeReply(ReplyModel):
    """The reply of POST /detokenize."""

    prompt: str


class HeadReply(ReplyModel):
    name: str
    has_advantage: bool
    has_value: bool
    has_reward: bool
    trained_on: str
    rows: str | None
    value_per_advantage: float | None


class ExpertReply(ReplyModel):
    name: str
    max_model_len: int


class ModelReply(ReplyModel):
    """The reply of GET /v1/models/NAME. guidance: a profile's."""

    id: str
    object: Literal["model"]
    created: int
    owned_by: str
    root: str
    max_model_len: int
    heads: list[HeadReply]
    experts: list[ExpertReply]
    default_head: str | None
    default_strength: float
    guidance: dict[str, Any] | None


class ModelsReply(ReplyModel):
    """The reply of GET /v1/models."""

    object: Literal["list"]
    data: list[ModelReply]


class HealthReply(ReplyModel):
    """The reply of GET /health. reason: why no requests can be served."""

    status: Literal["ready", "unavailable"]
    reason: str | None = None


class LiveReply(ReplyModel):
    """The reply of GET /live. reason: what the engine died of."""

    status: Literal["alive", "dead"]
    reason: str | None = None


class VersionReply(ReplyModel):
    """The reply of GET /version."""

    version: str


class TokenizerInfoReply(BaseModel):
    """The reply of GET /tokenizer_info: beside the template, each special token under its name."""

    model_config = ConfigDict(extra="allow")

    chat_template: str | dict[str, str] | None


CHUNKS = "with stream: `data:` lines of chunks, an error among them if there is one, and `[DONE]`"


def answers(
    model: type[BaseModel], *, streams: bool = False, what: str = CHUNKS
) -> dict[int | str, dict[str, Any]]:
    """`responses` of a route: its reply, as events too (what they are) where it streams, and the errors."""
    reply: dict[str, Any] = {"model": model}
    if streams:
        reply["content"] = {"text/event-stream": {"schema": {"type": "string", "description": what}}}
    return {200: reply, **ERROR_REPLIES}
