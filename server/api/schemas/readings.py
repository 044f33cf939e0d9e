"""Readings as bodies ask for them: POST /v1/score, /tokenize and /detokenize."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated

from pydantic import Field, model_validator

from trimtab.server.api import neutral
from trimtab.server.api.schemas.chats import ChatRendering
from trimtab.server.api.schemas.guidance import GuidanceFields
from trimtab.server.api.schemas.messages import Messages
from trimtab.server.api.schemas.strict import StrictModel, UnicodeText, at_most
from trimtab.server.engine.request import InvalidRequestError

MAX_TOKENS = 2**17  # that are read as text


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
    tokens: Annotated[list[int], Field(fail_fast=True), at_most(MAX_TOKENS, "tokens")]
