"""Connections: an HTTP protocol that closes those whose headers do not come to an end in time, or that take
nothing of what they are sent, and that writes the pieces of streams itself."""

from __future__ import annotations

import asyncio
import logging
from functools import partial
from typing import Any

import h11
from starlette.types import ASGIApp, Receive, Scope, Send
from uvicorn.protocols.http.h11_impl import H11Protocol

logger = logging.getLogger(__name__)


MIN_TAKEN = 2**16  # bytes that a client takes in its time, where so many wait for it


WRITE_PIECE = "trimtab.write_piece"
"""Extension in a scope: writes bytes of a body whose length was not told, past `send` and all that watches
it, which costs several times as much. False, and nothing is written, where that has to be awaited: by who is
not ready for more, or has left, and for HTTP/1.0."""


class TimedH11Protocol(H11Protocol):
    """read_timeout: seconds from the connection, or a request's first byte, to the end of its headers.
    write_timeout: seconds in which a client has to take MIN_TAKEN bytes, or all that waits for it."""

    read_timeout = write_timeout = 30.0
    _headers_due: asyncio.TimerHandle | None = None
    _taking_due: asyncio.TimerHandle | None = None

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.app: ASGIApp = partial(self._answer, self.app)

    async def _answer(self, app: ASGIApp, scope: Scope, receive: Receive, send: Send) -> None:
        scope["extensions"] = {WRITE_PIECE: self._write_piece}
        await app(scope, receive, send)

    def _write_piece(self, piece: bytes) -> bool:
        is_chunked = self.conn.our_state is h11.SEND_BODY and self.scope["http_version"] == "1.1"
        if not is_chunked or self.flow.write_paused:  # nor is it in that state once the client has left
            return False
        self.transport.write(b"%x\r\n%b\r\n" % (len(piece), piece))
        return True

    def connection_made(self, transport: Any) -> None:
        super().connection_made(transport)
        transport.set_write_buffer_limits(high=0)  # writing pauses once the system takes no more
        self._expect_headers()

    def pause_writing(self) -> None:
        super().pause_writing()
        self._expect_taking()

    def resume_writing(self) -> None:
        self._stop_expecting_taking()
        super().resume_writing()

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        if self.conn.their_state is h11.IDLE and self.conn.trailing_data[0]:
            self._expect_headers()
        elif self.conn.their_state is not h11.IDLE:
            self._stop_expecting()

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop_expecting()
        self._stop_expecting_taking()
        super().connection_lost(exc)

    def _expect_headers(self) -> None:
        if self._headers_due is None:
            self._headers_due = self.loop.call_later(self.read_timeout, self._cut_off)

    def _stop_expecting(self) -> None:
        if self._headers_due is not None:
            self._headers_due.cancel()
            self._headers_due = None

    def _expect_taking(self) -> None:
        waiting = self.transport.get_write_buffer_size()
        self._taking_due = self.loop.call_later(self.write_timeout, self._check_taking, waiting)

    def _stop_expecting_taking(self) -> None:
        if self._taking_due is not None:
            self._taking_due.cancel()
            self._taking_due = None

    def _check_taking(self, waited: int) -> None:
        if waited - self.transport.get_write_buffer_size() >= MIN_TAKEN:
            self._expect_taking()
        else:  # not close, which would wait for what is not taken
            logger.warning("a client takes nothing of its reply; the connection is cut")
            self.transport.abort()

    def _cut_off(self) -> None:
        self._headers_due = None
        if self.conn.their_state is h11.IDLE and not self.transport.is_closing():
            self.transport.close()


def timed_protocol(read_timeout: float, write_timeout: float = 30.0) -> type[TimedH11Protocol]:
    """For uvicorn's `http`."""
    times = {"read_timeout": read_timeout, "write_timeout": write_timeout}
    return type("TimedH11Protocol", (TimedH11Protocol,), times)
