"""Routes: answer POST /v1/chat/completions and /v1/completions, GET /health, /version and /metrics."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from importlib.metadata import PackageNotFoundError
from importlib.metadata import version as version_of

from fastapi import APIRouter
from starlette.requests import Request as HttpRequest
from starlette.responses import JSONResponse, PlainTextResponse, Response

from trimtab.server.api.errors import ERROR_REPLIES, RETRY_LATER, naming
from trimtab.server.api.generation import Generation, Usage
from trimtab.server.api.metrics import CONTENT_TYPE
from trimtab.server.api.readings.prompts import (
    PromptReading,
    unfollowed,
    usage_of,
    whole_prompt,
)
from trimtab.server.api.readings.read import read_prompts
from trimtab.server.api.replies import ChatFormat, CompletionFormat, Json, ReplyFormat
from trimtab.server.api.requests import (
    NEGATIVE_PROMPT,
    Words,
    chat_sampling,
    completion_sampling,
    negative_chat,
    negative_text,
    negative_texts,
    render_chat,
    resolve_grammar,
    resolve_guidance,
    tokens_of_words,
    truncated,
)
from trimtab.server.api.schemas.chats import ChatRequest
from trimtab.server.api.schemas.completions import CompletionRequest
from trimtab.server.api.schemas.generation import GenerationRequest
from trimtab.server.api.schemas.replies import (
    ChatReply,
    CompletionReply,
    HealthReply,
    LiveReply,
    VersionReply,
    answers,
)
from trimtab.server.api.selection import Selection, rejection_of, selection_of
from trimtab.server.api.service import ReadyService, Service, why_dead, why_not_ready
from trimtab.server.api.streaming import EventStream, whole_reply
from trimtab.server.api.strict_json import StrictJsonRoute
from trimtab.server.api.tokens import Tokenizer
from trimtab.server.api.tools.use import ToolUse, tool_use
from trimtab.server.engine.request import GrammarSpec, Guidance, Request, SamplingParams, check_request

router = APIRouter(route_class=StrictJsonRoute, responses=ERROR_REPLIES)


@router.post("/v1/chat/completions", responses=answers(ChatReply, streams=True))
async def create_chat_completion(body: ChatRequest, http: HttpRequest, service: ReadyService) -> Response:
    """A chat reply, whole or as server-sent events."""
    chat = await begin_chat(body, http, service)
    if body.stream:
        return _stream(body, chat.generation, chat.reply)
    return await whole_reply(http, chat.generation, chat.reply, chat.selection)


@dataclass(frozen=True, slots=True)
class Chat:
    """A chat that the engine has taken. model: as it was asked for. selection: which of its replies are
    returned."""

    model: str
    reply: ChatFormat
    generation: Generation
    sampling: SamplingParams
    selection: Selection | None


async def begin_chat(body: ChatRequest, http: HttpRequest, service: Service) -> Chat:
    """Raises what the error handlers know; the engine has then taken nothing."""
    body, info = service.steered(body), service.info
    model = body.model or info.model_name
    use = tool_use(body, service.call_format)
    tools = [] if use is None else use.templated
    encoding = service.encoding
    encoding.check_length((message.text for message in body.messages), "messages")
    negative: list[int] = []
    if others := negative_texts(body):  # a thread is asked only where there is something to read
        encoding.check_length(others, NEGATIVE_PROMPT)
        negative = await encoding.run(http, negative_chat, service.tokenizer, body, tools)
    guidance = resolve_guidance(body.guidance, service.config, info, negative)
    grammar = await _prepare(http, service, body, use)
    tokenizer = service.tokenizer
    prompt = await encoding.run(http, render_chat, tokenizer, body.messages, tools, "messages", body)
    prompt = truncated(prompt, body, info)
    bad_words = await _tokens_of_words(http, service, body)
    reasoning = service.reasoning
    reply = ChatFormat(
        model,
        service.token_text,
        logprobs=bool(body.logprobs),
        trace=guidance.trace,
        tools=use,
        reasoning=reasoning,
        reasons=reasoning is not None and reasoning.tags.reasons_after(prompt),
    )
    with naming(body.engine_fields.get):
        longest = max(len(prompt), len(negative))
        sampling = chat_sampling(body, longest, info, service.config.sampling_defaults, bad_words)
        selection, rejection = selection_of(body, guidance, info), rejection_of(body, guidance, info)
        request = Request(
            reply.reply_id, tuple(prompt), sampling, guidance, grammar=grammar, rejection=rejection
        )
        usage = None
        if body.prompt_logprobs is not None:
            check_request(request, info)
            asked = [PromptReading("", request.prompt_token_ids)]
            (reply.prompt,), usage = await read_prompts(
                http, service, body, reply.reply_id, asked, guidance, body.prompt_logprobs
            )
            reply.num_prompt_top = body.prompt_logprobs
        generation = await service.generation(http, [request], usage, body.cache_salt)
    return Chat(model, reply, generation, sampling, selection)


@router.post("/v1/completions", responses=answers(CompletionReply, streams=True))
async def create_completion(body: CompletionRequest, http: HttpRequest, service: ReadyService) -> Response:
    """Completions of one or several prompts, whole or as server-sent events."""
    body, info = service.steered(body), service.info
    model = body.model or info.model_name
    encoding = service.encoding
    for prompt in body.prompt:
        encoding.check_length([prompt] if isinstance(prompt, str) else [], "prompt")
    negative: list[int] = []
    if others := negative_texts(body):  # a thread is asked only where there is something to read
        encoding.check_length(others, NEGATIVE_PROMPT)
        negative = await encoding.run(http, negative_text, service.tokenizer, body)
    guidance = resolve_guidance(body.guidance, service.config, info, negative)
    grammar = await _prepare(http, service, body)
    prompts = [prompt for prompt in body.prompt if not isinstance(prompt, str)]
    if len(prompts) < len(body.prompt):
        prompts = await encoding.run(http, _tokenise, service.tokenizer, body.prompt)
    prompts = [truncated(prompt, body, info) for prompt in prompts]
    bad_words = await _tokens_of_words(http, service, body)
    reply = CompletionFormat(
        model,
        service.token_text,
        logprobs=body.logprobs is not None,
        trace=guidance.trace,
    )
    reply.num_choices = body.n or 1
    if any(isinstance(prompt, str) for prompt in body.prompt):
        service.head_rows.meet("text", (name for name, _ in guidance.heads))
    with naming(body.engine_fields.get):
        longest = max(len(prompt) for prompt in (*prompts, negative))
        sampling = completion_sampling(body, longest, info, service.config.sampling_defaults, bad_words)
        selection, rejection = selection_of(body, guidance, info), rejection_of(body, guidance, info)
        followed = prompts if body.max_tokens != 0 else []
        requests = [
            Request(
                f"{reply.reply_id}-{index}",
                tuple(prompt),
                sampling,
                guidance,
                grammar=grammar,
                rejection=rejection,
            )
            for index, prompt in enumerate(followed)
        ]
        usage = await _read_prompts(http, service, body, reply, prompts, guidance, requests)
        if not requests:
            read = reply.echoed or reply.prompts
            return JSONResponse(reply.reply(unfollowed(read), usage_of(read, usage)))
        generation = await service.generation(http, requests, usage, body.cache_salt)
    if body.stream:
        return _stream(body, generation, reply)
    return await whole_reply(http, generation, reply, selection)


def _stream(body: GenerationRequest, generation: Generation, reply: ReplyFormat) -> EventStream:
    always = body.wants_usage_in_chunks
    return EventStream(generation, reply, include_usage=body.wants_usage_chunk, always=always)


async def _read_prompts(
    http: HttpRequest,
    service: Service,
    body: CompletionRequest,
    reply: CompletionFormat,
    prompts: list[list[int]],
    guidance: Guidance,
    requests: list[Request],
) -> Usage | None:
    """Tells the reply's format of the prompts, where they are asked for."""
    if not body.echo and body.prompt_logprobs is None:
        return None
    for request in requests or map(whole_prompt, prompts):
        check_request(request, service.info)
    sent = prompts if body.truncate_prompt_tokens is not None else body.prompt
    texts = await service.encoding.run(http, _texts, service.tokenizer, sent)
    asked = [PromptReading(text, tuple(ids)) for text, ids in zip(texts, prompts, strict=True)]
    usage = None
    if body.prompt_logprobs is not None or body.logprobs is not None:
        num_top = max(body.logprobs or 0, body.prompt_logprobs or 0)
        field = "logprobs" if num_top == body.logprobs else "prompt_logprobs"
        asked, usage = await read_prompts(
            http, service, body, reply.reply_id, asked, guidance, num_top, field
        )
    if body.echo:
        reply.echoed, reply.num_echo_top = asked, body.logprobs or 0
    if body.prompt_logprobs is not None:
        reply.prompts, reply.num_prompt_top = asked, body.prompt_logprobs
    return usage


async def _prepare(
    http: HttpRequest, service: Service, body: GenerationRequest, use: ToolUse | None = None
) -> GrammarSpec | None:
    """What the reply is held to, compiled."""
    grammar = resolve_grammar(body)
    if use is not None:
        grammar = use.grammar(grammar)
    if grammar is not None:
        grammar = replace(grammar, salt=service.salt(http, body.cache_salt))
        await service.engine.prepare(grammar)
    return grammar


async def _tokens_of_words(http: HttpRequest, service: Service, body: GenerationRequest) -> Words:
    if not body.bad_words:
        return ()
    return await service.encoding.run(http, tokens_of_words, service.tokenizer, body.bad_words)


def _tokenise(tokenizer: Tokenizer, prompts: list[str | list[int]]) -> list[list[int]]:
    return [tokenizer.encode(prompt) if isinstance(prompt, str) else prompt for prompt in prompts]


def _texts(tokenizer: Tokenizer, prompts: Sequence[str | list[int]]) -> list[str]:
    return [prompt if isinstance(prompt, str) else tokenizer.decode(prompt) for prompt in prompts]


HEALTH = {
    **answers(HealthReply),
    503: {"model": HealthReply, "description": "No requests can be served now."},
}
LIVE = {**answers(LiveReply), 503: {"model": LiveReply, "description": "The engine has died."}}


@router.get("/metrics", response_class=PlainTextResponse)
async def metrics(http: HttpRequest) -> Response:
    """For Prometheus, also while there is no engine."""
    return Response(http.app.state.metrics.page(), media_type=CONTENT_TYPE)


@router.get("/version", response_model=None, responses=answers(VersionReply))
async def version() -> Json:
    """The server's; of a checkout that is not installed it is not known."""
    try:
        return {"version": version_of("trimtab")}
    except PackageNotFoundError:
        return {"version": "unknown"}


@router.get("/live", responses=LIVE)
async def live(http: HttpRequest) -> JSONResponse:
    """Whether the process is worth keeping: until the engine's death, also while it loads and stops."""
    reason = why_dead(http.app)
    if reason is not None:
        return JSONResponse({"status": "dead", "reason": reason}, 503)
    return JSONResponse({"status": "alive"})


@router.get("/ping", responses=HEALTH)
@router.post("/ping", responses=HEALTH)
@router.get("/health", responses=HEALTH)
@router.get("/ready", responses=HEALTH)
async def health(http: HttpRequest) -> JSONResponse:
    """Whether requests can be served now."""
    reason = why_not_ready(http.app)
    if reason is not None:
        return JSONResponse({"status": "unavailable", "reason": reason}, 503, headers=RETRY_LATER)
    return JSONResponse({"status": "ready"})
