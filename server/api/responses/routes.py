"""Route of POST /v1/responses: answers as a chat does, in OpenAI's newer shape."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator
from typing import Any

from fastapi import APIRouter
from starlette.requests import Request as HttpRequest
from starlette.responses import JSONResponse, Response

from trimtab.server.api.errors import naming
from trimtab.server.api.responses.events import Json, ResponseWriter
from trimtab.server.api.responses.protocol import ResponsesRequest, name_of
from trimtab.server.api.routes import Chat, begin_chat
from trimtab.server.api.schemas.replies import answers
from trimtab.server.api.schemas.responses import ResponseReply
from trimtab.server.api.service import ReadyService
from trimtab.server.api.streaming import GenerationStream, data_line, describe_failure, while_connected
from trimtab.server.api.strict_json import StrictJsonRoute
from trimtab.server.engine.request import Delta

EVENTS = "with stream: OpenAI's typed events, the last `response.completed`, `.incomplete` or `.failed`"
router = APIRouter(route_class=StrictJsonRoute)


@router.post("/v1/responses", responses=answers(ResponseReply, streams=True, what=EVENTS))
async def create_response(body: ResponsesRequest, http: HttpRequest, service: ReadyService) -> Response:
    """A response, whole or as typed server-sent events. Nothing is kept."""
    with naming(name_of):
        chat = await begin_chat(body.chats, http, service)
    writer = ResponseWriter(_frame(body, chat))
    if body.stream:
        return GenerationStream(chat.generation, _lines(chat, writer))
    with chat.generation:
        return JSONResponse(await while_connected(http, _last(_events(chat, writer))))


async def _last(events: AsyncIterator[Json]) -> Json:
    """The response as it ends."""
    response: Json = {}
    async for event in events:
        response = event.get("response", response)
    return response


async def _lines(chat: Chat, writer: ResponseWriter) -> AsyncIterator[str]:
    try:
        async for event in _events(chat, writer):
            yield _lines_of(event)
    except Exception as error:  # the status is sent; what is left is to say so in the stream
        yield _lines_of(writer.failed(describe_failure(error)))


def _lines_of(event: Json) -> str:
    return f"event: {event['type']}\n{data_line(event)}"


async def _events(chat: Chat, writer: ResponseWriter) -> AsyncIterator[Json]:
    """Whole replies too are read as streams are, so that both say the same."""
    for event in writer.opening():
        yield event
    chat.reply.opening(0)
    last: Json = {}
    async for index, new in chat.generation.events():
        if not isinstance(new, Delta):
            last = chat.reply.last_choice(index, new)
        elif (choice := chat.reply.delta_choice(index, new)) is not None:
            for event in writer.take(choice):
                yield event
    for event in writer.closing(last, _usage(chat)):
        yield event


def _usage(chat: Chat) -> Json:
    usage = chat.generation.usage
    return {
        "input_tokens": usage.prompt,
        "input_tokens_details": {"cached_tokens": usage.cached, "cache_write_tokens": 0},
        "output_tokens": usage.completion,
        "output_tokens_details": {"reasoning_tokens": chat.reply.num_reasoning_tokens},
        "total_tokens": usage.prompt + usage.completion,
        "computed_tokens": usage.computed,
    }


def _frame(body: ResponsesRequest, chat: Chat) -> Json:
    """What a response repeats of its request, defaults filled in."""
    format: Any = body.text and body.text.format
    tools = [tool.model_dump(include=_TOOL) for tool in body.tools or ()]
    return {
        "id": f"resp_{chat.reply.reply_id.rpartition('-')[2]}",
        "object": "response",
        "created_at": int(time.time()),
        "model": chat.model,
        "background": False,
        "instructions": body.instructions,
        "max_output_tokens": body.max_output_tokens,
        "metadata": None,
        "parallel_tool_calls": body.parallel_tool_calls is not False,
        "previous_response_id": None,
        "store": False,
        "temperature": chat.sampling.temperature,
        "text": {"format": format.model_dump(by_alias=True, exclude_none=True) if format else _TEXT},
        "tool_choice": body.tool_choice.sent if body.tool_choice else "auto",
        "tools": tools,
        "top_p": chat.sampling.top_p,
        "truncation": "disabled",
    }


_TEXT = {"type": "text"}
_TOOL = {"type", "name", "description", "parameters", "strict"}
