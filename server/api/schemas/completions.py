"""Completion requests: the body of POST /v1/completions."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import AfterValidator, model_validator

from trimtab.guidance.ranges import shown
from trimtab.server.api import neutral
from trimtab.server.api.schemas.generation import GenerationRequest
from trimtab.server.api.schemas.strict import check_unicode
from trimtab.server.engine.request import InvalidRequestError

MAX_PROMPTS = 2048
MAX_REPLIES = 4096  # prompts times the replies to each


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
            check_unicode(item)
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
