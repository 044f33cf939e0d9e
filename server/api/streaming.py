"""Streaming: sends a reply as server-sent events or whole; a client that leaves takes its requests along."""

from __future__ import annotations

import asyncio
import json
import logging
import uuid
from collections.abc import AsyncIterator, Coroutine
from typing import Any, TypeVar

from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.types import Receive, Scope, Send

from trimtab.server.api.access.slow import WRITE_PIECE
from trimtab.server.api.errors import ApiError, EngineFailedError, describe
from trimtab.server.api.generation import Generation
from trimtab.server.api.replies import Json, ReplyFormat, usage_json
from trimtab.server.api.selection import Chosen, Selection
from trimtab.server.engine.request import Completion, Delta

logger = logging.getLogger(__name__)
_ANY_TEXT = uuid.uuid4().hex
_ENCODER = json.JSONEncoder(allow_nan=False, separators=(",", ":"))  # made once: it writes every token


class GenerationStream(StreamingResponse):
    """Server-sent events of a generation, which ends with them. Where it does not begin in time that is what
    is raised, and no status is sent."""

    media_type = "text/event-stream"

    def __init__(self, generation: Generation, lines: AsyncIterator[str]) -> None:
        self._generation = generation
        super().__init__(lines, headers={"Cache-Control": "no-store", "X-Accel-Buffering": "no"})

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self._write = scope.get("extensions", {}).get(WRITE_PIECE)
        with self._generation:  # not in the generators: they may never have been started
            if self._generation.may_wait_too_long:
                await while_connected(Request(scope, receive), self._generation.begin())
            await super().__call__(scope, receive, send)

    async def stream_response(self, send: Send) -> None:
        await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
        async for lines in self.body_iterator:
            assert isinstance(lines, str)
            piece = lines.encode()
            if self._write is None or not self._write(piece):
                await send({"type": "http.response.body", "body": piece, "more_body": True})
        await send({"type": "http.response.body", "body": b"", "more_body": False})


class EventStream(GenerationStream):
    """One `data:` line per chunk, after a failure the error's, then `[DONE]`."""

    def __init__(
        self, generation: Generation, reply: ReplyFormat, *, include_usage: bool, always: bool = False
    ) -> None:
        """include_usage: in a last chunk; and so far in every chunk, if always."""
        super().__init__(generation, _lines(generation, reply, include_usage, always))


async def whole_reply(
    request: Request, generation: Generation, reply: ReplyFormat, selection: Selection | None = None
) -> Response:
    """selection: which of the replies are returned; by default all. Raises ClientDisconnect when the client
    leaves before the reply is whole."""
    with generation:
        completions = await gather_while_connected(request, generation)
    chosen = [Chosen(c) for c in completions] if selection is None else await selection.choose(completions)
    return JSONResponse(reply.reply(chosen, generation.usage))


async def gather_while_connected(request: Request, generation: Generation) -> list[Completion]:
    """All replies. Raises ClientDisconnect when the client leaves before."""
    return await while_connected(request, generation.gather())


_T = TypeVar("_T")


async def while_connected(request: Request, work: Coroutine[Any, Any, _T]) -> _T:
    """What the work returns. Raises ClientDisconnect, and cancels it, when the client leaves before."""
    gathering = asyncio.create_task(work)
    leaving = asyncio.create_task(_disconnected(request))
    try:
        await asyncio.wait((gathering, leaving), return_when=asyncio.FIRST_COMPLETED)
        if not gathering.done():
            leaving.result()  # raises what kept it from being told
            raise ClientDisconnect
        return gathering.result()
    finally:
        gathering.cancel()
        leaving.cancel()


async def _disconnected(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


async def _lines(
    generation: Generation, reply: ReplyFormat, include_usage: bool, always: bool
) -> AsyncIterator[str]:
    def usage() -> Json:
        """None where it is told at the end."""
        if not include_usage:
            return {}
        return {"usage": usage_json(so_far) if always else None}

    try:
        so_far = generation.usage_so_far
        texts = TextLines(reply, usage()) if reply.says_text_alone and not always else None
        for index in range(generation.num_choices):
            if (choice := reply.opening(index)) is not None:
                yield data_line(reply.chunk(choice, **usage()))
        async for index, event in generation.events():
            if isinstance(event, Delta):
                so_far.completion += len(event.tokens)
                if texts is not None:
                    if event.text:
                        yield texts.line(index, event.text)
                    continue
                choice = reply.delta_choice(index, event)
            else:
                choice = reply.last_choice(index, event)
            if choice is not None:
                yield data_line(reply.chunk(choice, **usage()))
        if include_usage:
            yield data_line(reply.chunk(usage=usage_json(generation.usage)))
    except Exception as error:  # the status is sent; what is left is to say so in the stream
        yield data_line(describe_failure(error).body)
    yield "data: [DONE]\n\n"


class TextLines:
    """Lines of chunks that differ in their text alone: what stands around it is written once for each choice.

    more: what a chunk has beside its choice.
    """

    def __init__(self, reply: ReplyFormat, more: Json) -> None:
        self._reply, self._more = reply, more
        self._around: dict[int, list[str]] = {}

    def line(self, index: int, text: str) -> str:
        """What `data_line` writes of the chunk of a delta with this text."""
        before, after = self._around.get(index) or self._write_around(index)
        return f"{before}{_ENCODER.encode(text)}{after}"

    def _write_around(self, index: int) -> list[str]:
        choice = self._reply.delta_choice(index, Delta(self._reply.reply_id, index, _ANY_TEXT, (), ()))
        assert choice is not None
        written = data_line(self._reply.chunk(choice, **self._more))
        self._around[index] = around = written.split(_ENCODER.encode(_ANY_TEXT))
        return around


def describe_failure(error: Exception) -> ApiError:
    """Logs it: a stream cannot raise it on."""
    if isinstance(error, EngineFailedError):  # the engine has logged what there was
        logger.error("a stream failed: %s", error)
    else:  # whose words are the log's to tell, or not
        logger.error("a stream failed", exc_info=error)
    return describe(error)


def data_line(data: object) -> str:
    """As server-sent events have it, with the empty line that ends an event."""
    return f"data: {_ENCODER.encode(data)}\n\n"
