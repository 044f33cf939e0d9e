"""Routes: answer POST /v1/chat/completions and /v1/completions, GET /v1/models, /health and /metrics."""

from __future__ import annotations

import asyncio
from dataclasses import asdict
from typing import Annotated

from fastapi import APIRouter, Depends
from starlette.requests import Request as HttpRequest
from starlette.responses import JSONResponse, Response

from trimtab.server.api.errors import RETRY_LATER, naming
from trimtab.server.api.metrics import CONTENT_TYPE
from trimtab.server.api.protocol import ChatRequest, CompletionRequest, GenerationRequest
from trimtab.server.api.replies import ChatFormat, CompletionFormat, Json
from trimtab.server.api.requests import (
    chat_sampling,
    completion_sampling,
    negative_chat,
    negative_text,
    render_chat,
    resolve_grammar,
    resolve_guidance,
)
from trimtab.server.api.selection import rejection_of, selection_of
from trimtab.server.api.service import Service, ready_service, why_not_ready
from trimtab.server.api.streaming import EventStream, whole_reply
from trimtab.server.api.strict_json import StrictJsonRoute
from trimtab.server.api.tokens import Tokenizer
from trimtab.server.api.tools.use import ToolUse, tool_use
from trimtab.server.engine.request import GrammarSpec, Request

router = APIRouter(route_class=StrictJsonRoute)
ReadyService = Annotated[Service, Depends(ready_service)]


@router.post("/v1/chat/completions")
async def create_chat_completion(body: ChatRequest, http: HttpRequest, service: ReadyService) -> Response:
    """A chat reply, whole or as server-sent events."""
    service.check_model(body.model)
    info = service.info
    use = tool_use(body, service.call_format)
    tools = [] if use is None else use.templated
    negative = await asyncio.to_thread(negative_chat, service.tokenizer, body, tools)
    guidance = resolve_guidance(body.guidance, service.config, info, negative)
    grammar = await _prepare(service, body, use)
    prompt = await asyncio.to_thread(render_chat, service.tokenizer, body.messages, tools)
    reply = ChatFormat(
        info.model_name, service.token_text, logprobs=bool(body.logprobs), trace=guidance.trace, tools=use
    )
    with naming(body.engine_fields):
        longest = max(len(prompt), len(negative))
        sampling = chat_sampling(body, longest, info, service.config.sampling_defaults)
        selection, rejection = selection_of(body, guidance, info), rejection_of(body, guidance, info)
        request = Request(
            reply.reply_id, tuple(prompt), sampling, guidance, grammar=grammar, rejection=rejection
        )
        generation = service.generation([request])
    if body.stream:
        return EventStream(generation, reply, include_usage=body.wants_usage_chunk)
    return await whole_reply(http, generation, reply, selection)


@router.post("/v1/completions")
async def create_completion(body: CompletionRequest, http: HttpRequest, service: ReadyService) -> Response:
    """Completions of one or several prompts, whole or as server-sent events."""
    service.check_model(body.model)
    info = service.info
    negative = await asyncio.to_thread(negative_text, service.tokenizer, body)
    guidance = resolve_guidance(body.guidance, service.config, info, negative)
    grammar = await _prepare(service, body)
    prompts = await asyncio.to_thread(_tokenise, service.tokenizer, body.prompt)
    longest = max(len(prompt) for prompt in (*prompts, negative))
    reply = CompletionFormat(
        info.model_name, service.token_text, logprobs=body.logprobs is not None, trace=guidance.trace
    )
    with naming(body.engine_fields):
        sampling = completion_sampling(body, longest, info, service.config.sampling_defaults)
        selection, rejection = selection_of(body, guidance, info), rejection_of(body, guidance, info)
        requests = [
            Request(
                f"{reply.reply_id}-{index}",
                tuple(prompt),
                sampling,
                guidance,
                grammar=grammar,
                rejection=rejection,
            )
            for index, prompt in enumerate(prompts)
        ]
        generation = service.generation(requests)
    if any(isinstance(prompt, str) for prompt in body.prompt):
        service.head_rows.meet("text", (name for name, _ in guidance.heads))
    if body.stream:
        return EventStream(generation, reply, include_usage=body.wants_usage_chunk)
    return await whole_reply(http, generation, reply, selection)


async def _prepare(
    service: Service, body: GenerationRequest, use: ToolUse | None = None
) -> GrammarSpec | None:
    """What the reply is held to, compiled."""
    grammar = resolve_grammar(body)
    if use is not None:
        grammar = use.grammar(grammar)
    if grammar is not None:
        await service.engine.prepare(grammar)
    return grammar


def _tokenise(tokenizer: Tokenizer, prompts: list[str | list[int]]) -> list[list[int]]:
    return [tokenizer.encode(prompt) if isinstance(prompt, str) else prompt for prompt in prompts]


@router.get("/v1/models")
async def list_models(service: ReadyService) -> Json:
    """The served model, as a list of one."""
    return {"object": "list", "data": [_model(service)]}


@router.get("/v1/models/{model:path}")
async def get_model(model: str, service: ReadyService) -> Json:
    """The served model; 404 for any other."""
    service.check_model(model)
    return _model(service)


def _model(service: Service) -> Json:
    info = service.info
    return {
        "id": info.model_name,
        "object": "model",
        "created": info.created,
        "owned_by": "trimtab",
        "max_model_len": info.max_model_len,
        "heads": [asdict(head) for head in info.heads],
        "experts": [asdict(expert) for expert in info.experts],
        "default_head": service.config.default_head,
        "default_strength": service.config.default_strength,
    }


@router.get("/metrics")
async def metrics(http: HttpRequest) -> Response:
    """For Prometheus, also while there is no engine."""
    return Response(http.app.state.metrics.page(), media_type=CONTENT_TYPE)


@router.get("/health")
async def health(http: HttpRequest) -> JSONResponse:
    """Whether requests can be served now."""
    reason = why_not_ready(http.app)
    if reason is not None:
        return JSONResponse({"status": "unavailable", "reason": reason}, 503, headers=RETRY_LATER)
    return JSONResponse({"status": "ready"})
