"""Prompt readings: tell log-probabilities of a prompt's own tokens, for `echo` and `prompt_logprobs`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from trimtab.server.api.generation import Usage
from trimtab.server.api.selection import Chosen
from trimtab.server.api.tokens import TokenText, jsonable_logprob
from trimtab.server.engine.request import (
    Completion,
    GuidanceSummary,
    Request,
    SamplingParams,
    TokenRecord,
    reading_of,
)

Json = dict[str, Any]


@dataclass(frozen=True, slots=True)
class PromptReading:
    """One prompt: its text and tokens, and where its log-probabilities are asked for, those of all tokens but
    the first, which nothing comes before. reading: None where there is nothing to read."""

    text: str
    token_ids: tuple[int, ...]
    reading: Completion | None = None

    @property
    def offsets(self) -> list[int]:
        """Where in the text each token begins."""
        if self.reading is None:
            return [0]
        first = max(len(self.text) - len(self.reading.text), 0)
        return [0, *(min(first + offset, len(self.text)) for offset in self.reading.offsets)]

    @property
    def summary(self) -> GuidanceSummary:
        return GuidanceSummary(0.0, 0.0, (), (), 0) if self.reading is None else self.reading.summary

    @property
    def read_tokens(self) -> Sequence[TokenRecord]:
        return () if self.reading is None else self.reading.tokens

    def entries(self, num_top: int, token_text: TokenText) -> list[Json | None]:
        """vLLM's `prompt_logprobs`: of each token the num_top likeliest and itself, by their ids. A rank is
        told of those that are among the likeliest."""
        return [None, *(self._entry(token, num_top, token_text) for token in self.read_tokens)]

    def _entry(self, token: TokenRecord, num_top: int, token_text: TokenText) -> Json:
        ranked = {
            token_id: (logprob, rank)
            for rank, (token_id, logprob) in enumerate(token.top_logprobs[:num_top], start=1)
        }
        ranked.setdefault(token.token_id, (token.logprob, None))  # type: ignore[arg-type]
        return {
            str(token_id): {
                "logprob": jsonable_logprob(logprob),
                "rank": rank,
                "decoded_token": token_text.text(token_id),
            }
            for token_id, (logprob, rank) in ranked.items()
        }


def whole_prompt(token_ids: Sequence[int]) -> Request:
    """The request that tells of a prompt and nothing else, to be checked."""
    if len(token_ids) > 1:
        return reading_of("", token_ids[:1], token_ids[1:])
    return Request("", tuple(token_ids), SamplingParams(max_tokens=1))


def unfollowed(prompts: Sequence[PromptReading]) -> list[Chosen]:
    """Replies of no tokens."""
    replies = []
    for prompt in prompts:
        reply = Completion(Request("", prompt.token_ids), 0)
        reply.finish_reason, reply.summary = "length", prompt.summary
        replies.append(Chosen(reply))
    return replies


def usage_of(prompts: Sequence[PromptReading], read: Usage | None) -> Usage:
    """Of prompts alone."""
    computed = 0 if read is None else read.computed
    return Usage(prompt=sum(len(prompt.token_ids) for prompt in prompts), computed=computed)
