"""Routes of given texts: answer POST /v1/score, /tokenize and /detokenize, GET /tokenizer_info."""

from __future__ import annotations

import time
import uuid
from dataclasses import replace

from fastapi import APIRouter
from starlette.requests import Request as HttpRequest
from starlette.responses import JSONResponse, Response

from trimtab.guidance.errors import DataError, PolicyError
from trimtab.guidance.text.encoding import EncodedReply, ReplyEncoder
from trimtab.guidance.text.message import Message as TextMessage
from trimtab.server.api.errors import ERROR_REPLIES, naming
from trimtab.server.api.replies import Json, summary_json, trace_json, usage_json
from trimtab.server.api.requests import render_chat, resolve_guidance
from trimtab.server.api.schemas.readings import DetokenizeRequest, ScoreRequest, TokenizeRequest
from trimtab.server.api.schemas.replies import (
    DetokenizeReply,
    ScoreReply,
    TokenizeReply,
    TokenizerInfoReply,
    answers,
)
from trimtab.server.api.service import ReadyService, Service
from trimtab.server.api.streaming import gather_while_connected
from trimtab.server.api.strict_json import StrictJsonRoute
from trimtab.server.api.tokens import Tokenizer
from trimtab.server.engine.request import InvalidRequestError, check_ids, reading_of

router = APIRouter(route_class=StrictJsonRoute, responses=ERROR_REPLIES)


@router.post("/v1/score", responses=answers(ScoreReply))
async def score(body: ScoreRequest, http: HttpRequest, service: ReadyService) -> Response:
    """What the heads and the policy say of a reply that is given; nothing is sampled."""
    body = service.steered(body)
    guidance = replace(resolve_guidance(body.guidance, service.config, service.info), trace=True)
    texts = [message.text for message in body.messages or ()]
    field = "prompt" if body.messages is None else "messages"
    service.encoding.check_length([*texts, body.prompt or "", body.completion or ""], field)
    encoded = await service.encoding.run(http, _encode, service, body)
    name = f"score-{uuid.uuid4().hex}"
    with naming(body.engine_fields.get):
        request = reading_of(name, encoded.prompt_ids, encoded.reply_ids, guidance=guidance)
        generation = await service.generation(http, [request])
    with generation:
        (reply,) = await gather_while_connected(http, generation)
    scored = {
        "id": name,
        "object": "score",
        "created": int(time.time()),
        "model": body.model or service.info.model_name,
        **summary_json(reply.summary),
        "tokens": trace_json(reply.tokens, service.token_text),
        "usage": usage_json(generation.usage),
    }
    return JSONResponse(scored)


def _encode(service: Service, body: ScoreRequest) -> EncodedReply:
    """As training reads them: the reply with its end."""
    prompt: str | tuple[TextMessage, ...]
    if body.messages is not None:
        prompt = tuple(TextMessage(message.role, message.text) for message in body.messages[:-1])
        reply, field = body.messages[-1].text, "messages"
    else:
        prompt, reply, field = body.prompt or "", body.completion or "", "prompt"
    encoder = ReplyEncoder(
        service.tokenizer,
        "chat" if body.messages is not None else "text",
        end_ids=service.info.eos_token_ids,
    )
    try:
        return encoder.encode(prompt, reply)
    except (DataError, PolicyError) as error:
        raise InvalidRequestError(str(error), field) from error


@router.post("/tokenize", responses=answers(TokenizeReply))
async def tokenize(body: TokenizeRequest, http: HttpRequest, service: ReadyService) -> Response:
    """The tokens of a text, or of a conversation as its template writes it."""
    service.check_model(body.model)
    service.encoding.check_length([body.prompt or ""], "prompt")
    service.encoding.check_length((message.text for message in body.messages or ()), "messages")
    ids = await service.encoding.run(http, _tokenise, service.tokenizer, body)
    texts = [service.token_text.text(token) for token in ids] if body.return_token_strs else None
    info = service.info
    found = {"count": len(ids), "max_model_len": info.max_model_len, "tokens": ids, "token_strs": texts}
    return JSONResponse(found)


def _tokenise(tokenizer: Tokenizer, body: TokenizeRequest) -> list[int]:
    if body.messages is not None:
        return render_chat(tokenizer, body.messages, asked=body)
    ids: list[int] = tokenizer(body.prompt or "", add_special_tokens=body.add_special_tokens is not False)[
        "input_ids"
    ]
    return ids


@router.post("/detokenize", responses=answers(DetokenizeReply))
async def detokenize(body: DetokenizeRequest, http: HttpRequest, service: ReadyService) -> Response:
    """The text of tokens."""
    service.check_model(body.model)
    check_ids(body.tokens, service.info, "tokens")
    return JSONResponse({"prompt": await service.encoding.run(http, service.tokenizer.decode, body.tokens)})


@router.get("/tokenizer_info", response_model=None, responses=answers(TokenizerInfoReply))
async def tokenizer_info(service: ReadyService) -> Json:
    """The special tokens, and the chat template."""
    special = {name: str(token) for name, token in service.tokenizer.special_tokens_map.items()}
    return {**special, "chat_template": service.tokenizer.chat_template}
