"""POST /v1/completions."""

from __future__ import annotations

import asyncio
from typing import Annotated

from fastapi import APIRouter, Depends
from starlette.requests import Request as HttpRequest
from starlette.responses import Response

from trimtab.server.api.completion_reply import CompletionReply
from trimtab.server.api.generation import Generation
from trimtab.server.api.guidance import resolve_guidance
from trimtab.server.api.protocol import CompletionRequest
from trimtab.server.api.requests import completion_sampling
from trimtab.server.api.service import Service, ready_service
from trimtab.server.api.streaming import EventStream, whole_reply
from trimtab.server.api.strict_json import StrictJsonRoute
from trimtab.server.api.tokenizer import Tokenizer
from trimtab.server.engine.request import InvalidRequestError, Request

router = APIRouter(route_class=StrictJsonRoute)


@router.post("/v1/completions")
async def create_completion(
    body: CompletionRequest, http: HttpRequest, service: Annotated[Service, Depends(ready_service)]
) -> Response:
    """Completions of one or several prompts, whole or as server-sent events."""
    service.check_model(body.model)
    info = service.info
    guidance = resolve_guidance(body.guidance, service.config, info)
    prompts = await asyncio.to_thread(_tokenise, service.tokenizer, body.prompt, info.vocab_size)
    if any(isinstance(prompt, str) for prompt in body.prompt):
        service.head_rows.meet("text", (name for name, _ in guidance.heads))
    longest = max(len(prompt) for prompt in prompts)
    sampling = completion_sampling(body, longest, info, service.config.sampling_defaults)
    reply = CompletionReply(
        info.model_name, service.token_text, logprobs=body.logprobs is not None, trace=guidance.trace
    )
    requests = [
        Request(f"{reply.reply_id}-{index}", tuple(prompt), sampling, guidance)
        for index, prompt in enumerate(prompts)
    ]
    generation = Generation(service.engine, requests)
    if body.stream:
        return EventStream(generation, reply, include_usage=body.wants_usage_chunk)
    return await whole_reply(http, generation, reply)


def _tokenise(tokenizer: Tokenizer, prompts: list[str | list[int]], vocab_size: int) -> list[list[int]]:
    ids = [tokenizer.encode(prompt) if isinstance(prompt, str) else prompt for prompt in prompts]
    for prompt in ids:
        if not prompt:
            raise InvalidRequestError("prompt: has no tokens", "prompt")
        if not all(0 <= token < vocab_size for token in prompt):
            raise InvalidRequestError(f"prompt: token ids must be 0…{vocab_size - 1}", "prompt")
    return ids
