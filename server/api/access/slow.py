"""Slow clients: an HTTP protocol that closes connections whose headers do not come to an end in time, or that
take nothing of what they are sent."""

from __future__ import annotations

import asyncio
import logging
from typing import Any

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

logger = logging.getLogger(__name__)


MIN_TAKEN = 2**16  # bytes that a client takes in its time, where so many wait for it


class TimedH11Protocol(H11Protocol):
    """read_timeout: seconds from the connection, or a request's first byte, to the end of its headers.
    write_timeout: seconds in which a client has to take MIN_TAKEN bytes, or all that waits for it."""

    read_timeout = write_timeout = 30.0
    _headers_due: asyncio.TimerHandle | None = None
    _taking_due: asyncio.TimerHandle | None = None

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
