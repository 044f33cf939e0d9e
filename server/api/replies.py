"""The frame that every reply and every chunk shares, and what a kind of reply fills in."""

from __future__ import annotations

import time
import uuid
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any

from trimtab.server.api.generation import Choice, Usage
from trimtab.server.api.guidance_reply import Json, summary_json, trace_json
from trimtab.server.api.tokens import TokenText
from trimtab.server.engine.request import ChoiceDone, Delta, TokenRecord


class ReplyFormat(ABC):
    """Turns what the engine reports into OpenAI's JSON. One per HTTP request.

    id_prefix, object_name, chunk_object_name: OpenAI's names for this kind of reply.
    """

    id_prefix: str
    object_name: str
    chunk_object_name: str

    def __init__(self, model: str, token_text: TokenText, *, logprobs: bool, trace: bool) -> None:
        self.reply_id = f"{self.id_prefix}-{uuid.uuid4().hex}"
        self.token_text = token_text
        self.logprobs = logprobs
        self.trace = trace
        self._frame = {"id": self.reply_id, "created": int(time.time()), "model": model}

    def reply(self, choices: list[Choice], usage: Usage) -> Json:
        """A whole reply."""
        rendered = [
            self.choice(index, choice) | {"guidance": self._guidance(choice)}
            for index, choice in enumerate(choices)
        ]
        return {**self._frame, "object": self.object_name, "choices": rendered, "usage": usage_json(usage)}

    def chunk(self, *choices: Json, **more: Any) -> Json:
        """One chunk of a streamed reply."""
        return {**self._frame, "object": self.chunk_object_name, "choices": list(choices), **more}

    def delta_choice(self, index: int, event: Delta) -> Json | None:
        """A chunk's choice with new text and its tokens' entries; None when there is nothing to say."""
        if not (event.text or (event.tokens and (self.logprobs or self.trace))):
            return None
        choice = self.delta(index, event)
        if self.trace:
            choice["guidance"] = {"trace": trace_json(event.tokens, self.token_text)}
        return choice

    def last_choice(self, index: int, event: ChoiceDone) -> Json:
        """A choice's last chunk: why it ended, and the summary."""
        return self.closing(index, event) | {"guidance": summary_json(event.summary)}

    def logprobs_or_none(self, tokens: Sequence[TokenRecord], offsets: Sequence[int]) -> Json | None:
        """None when the request did not ask for them."""
        return self.logprobs_json(tokens, offsets) if self.logprobs else None

    def _guidance(self, choice: Choice) -> Json:
        assert choice.summary is not None, "a finished request has a summary for every choice"
        trace = {"trace": trace_json(choice.tokens, self.token_text)} if self.trace else {}
        return summary_json(choice.summary) | trace

    @abstractmethod
    def choice(self, index: int, choice: Choice) -> Json:
        """A whole choice, without its guidance."""

    @abstractmethod
    def opening(self, index: int) -> Json | None:
        """The choice of a stream's first chunk, where this kind has one."""

    @abstractmethod
    def delta(self, index: int, event: Delta) -> Json:
        """A chunk's choice with new text."""

    @abstractmethod
    def closing(self, index: int, event: ChoiceDone) -> Json:
        """The choice of a stream's last chunk, without its guidance."""

    @abstractmethod
    def logprobs_json(self, tokens: Sequence[TokenRecord], offsets: Sequence[int]) -> Json:
        """Log-probabilities of the tilt. offsets: where in the choice's text each token begins."""


def usage_json(usage: Usage) -> Json:
    """OpenAI's `usage`."""
    return {
        "prompt_tokens": usage.prompt,
        "completion_tokens": usage.completion,
        "total_tokens": usage.prompt + usage.completion,
        "prompt_tokens_details": {"cached_tokens": usage.cached},
    }
