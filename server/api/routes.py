"""POST /v1/chat/completions."""

from __future__ import annotations

import asyncio
from typing import Annotated

from fastapi import APIRouter, Depends
from starlette.requests import Request as HttpRequest
from starlette.responses import Response

from trimtab.server.api.chat_reply import ChatReply
from trimtab.server.api.chat_template import render_chat
from trimtab.server.api.generation import Generation
from trimtab.server.api.guidance import resolve_guidance
from trimtab.server.api.protocol import ChatRequest
from trimtab.server.api.requests import chat_sampling
from trimtab.server.api.service import Service, ready_service
from trimtab.server.api.streaming import EventStream, whole_reply
from trimtab.server.api.strict_json import StrictJsonRoute
from trimtab.server.engine.request import Request

router = APIRouter(route_class=StrictJsonRoute)


@router.post("/v1/chat/completions")
async def create_chat_completion(
    body: ChatRequest, http: HttpRequest, service: Annotated[Service, Depends(ready_service)]
) -> Response:
    """A chat reply, whole or as server-sent events."""
    service.check_model(body.model)
    info = service.info
    guidance = resolve_guidance(body.guidance, service.config, info)
    prompt = await asyncio.to_thread(render_chat, service.tokenizer, body.messages)
    sampling = chat_sampling(body, len(prompt), info, service.config.sampling_defaults)
    reply = ChatReply(info.model_name, service.token_text, logprobs=bool(body.logprobs), trace=guidance.trace)
    generation = Generation(service.engine, [Request(reply.reply_id, tuple(prompt), sampling, guidance)])
    if body.stream:
        return EventStream(generation, reply, include_usage=body.wants_usage_chunk)
    return await whole_reply(http, generation, reply)
