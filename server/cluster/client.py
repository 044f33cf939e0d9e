"""Client of engines elsewhere: looks like one engine, and ends each request in one terminal event whatever
becomes of the engine that took it."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from trimtab.guidance.errors import HeadError
from trimtab.server.api.generation import EngineStatus
from trimtab.server.cluster.replica import Message
from trimtab.server.engine.request import (
    TERMINAL,
    Aborted,
    EngineInfo,
    EngineStats,
    EngineUnavailableError,
    Event,
    Failed,
    GrammarSpec,
    QueueFullError,
    Request,
)

logger = logging.getLogger(__name__)
ADMISSION_SECONDS = 60.0  # that a request waits for an engine to take it


class Stream(Protocol):
    """The messages of a request, from whichever engine it was sent to."""

    def __aiter__(self) -> AsyncIterator[Message]: ...

    async def __anext__(self) -> Message: ...

    def cancel(self) -> None: ...


@dataclass
class RemoteEngine:
    """send: begins a request's stream. busy: what that raises, at the first message, where too many wait.

    Its statistics are those of several, and told by each of them.
    """

    info: EngineInfo
    send: Callable[[Request], Stream]
    busy: type[Exception]
    status: EngineStatus = "ready"
    stats: EngineStats | None = None
    _streams: dict[str, Stream] = field(default_factory=dict)

    async def prepare(self, grammar: GrammarSpec) -> None:
        """Does nothing: the engine that takes the request compiles it, and may refuse it then."""

    async def submit(self, request: Request) -> AsyncIterator[Event]:
        """See EngineClient."""
        seconds = min(request.max_wait or ADMISSION_SECONDS, ADMISSION_SECONDS)
        stream = self.send(request)
        try:
            async with asyncio.timeout(seconds):
                first = await anext(stream)
        except asyncio.CancelledError:
            stream.cancel()
            raise
        except TimeoutError as error:
            stream.cancel()
            raise EngineUnavailableError(f"no engine was free for {seconds:g} seconds") from error
        except self.busy as error:
            raise QueueFullError("too many requests are waiting; try again in a moment") from error
        except Exception as error:
            logger.error("no engine has taken %s: %s", request.request_id, type(error).__name__)
            raise EngineUnavailableError("the engine went away; try again in a moment") from error
        if isinstance(first, Exception):
            raise first
        self._streams[request.request_id] = stream
        return self._events(request.request_id, stream)

    def abort(self, request_id: str) -> None:
        """See EngineClient."""
        if (stream := self._streams.pop(request_id, None)) is not None:
            stream.cancel()

    async def load_head(self, folder: Path, name: str) -> None:
        """Raises HeadError: engines that start later would not have it."""
        raise HeadError("the engines of a cluster load all heads when they start")

    async def unload_head(self, name: str) -> None:
        """Raises HeadError."""
        raise HeadError("the engines of a cluster keep the heads that they start with")

    async def _events(self, request_id: str, stream: Stream) -> AsyncIterator[Event]:
        try:
            while True:
                for event in await self._next(request_id, stream):
                    if is_over := isinstance(event, TERMINAL):
                        self._streams.pop(request_id, None)  # there is nothing to abort any more
                    yield event
                    if is_over:
                        return
        finally:
            self.abort(request_id)

    async def _next(self, request_id: str, stream: Stream) -> list[Event]:
        """Events, the terminal one too where the stream has come to an end without."""
        try:
            events = await anext(stream)
        except Exception as error:  # whatever it is, the request is over
            if request_id not in self._streams:
                return [Aborted(request_id)]
            logger.error("the engine of %s went away: %s", request_id, type(error).__name__)
            return [Failed(request_id, f"the engine went away before {request_id} was done")]
        assert isinstance(events, list)
        return events
