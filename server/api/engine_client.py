"""What the API needs of an engine: submit, abort, and a word on how it is."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Literal, Protocol

from trimtab.server.engine.info import EngineInfo
from trimtab.server.engine.request import Event, Request

EngineStatus = Literal["starting", "ready", "stopping", "dead"]


class EngineClient(Protocol):
    """An engine as seen from the event loop. Every accepted request ends in exactly one terminal event."""

    @property
    def info(self) -> EngineInfo: ...

    @property
    def status(self) -> EngineStatus: ...

    def submit(self, request: Request) -> AsyncIterator[Event]:
        """The request's events. Raises InvalidRequestError at once for what can never be served,
        EngineUnavailableError when the engine takes none (any more)."""
        ...

    def abort(self, request_id: str) -> None:
        """Ends the request's events with Aborted. Does nothing for a request that has ended."""
        ...
