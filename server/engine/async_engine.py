"""The engine in its own thread, behind submit() -> async iterator of events, and abort()."""

from __future__ import annotations

import asyncio
import logging
import queue
import threading
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from typing import Literal

from trimtab.server.engine.engine import Engine
from trimtab.server.engine.info import EngineInfo
from trimtab.server.engine.request import (
    TERMINAL,
    EngineUnavailableError,
    Event,
    Failed,
    InvalidRequestError,
    Request,
)

logger = logging.getLogger(__name__)
Status = Literal["starting", "ready", "dead"]


@dataclass(frozen=True, slots=True)
class _Sink:
    """Where one request's events go."""

    loop: asyncio.AbstractEventLoop
    events: asyncio.Queue[Event] = field(default_factory=asyncio.Queue)

    def put(self, events: list[Event]) -> None:
        for event in events:
            self.events.put_nowait(event)


@dataclass(frozen=True, slots=True)
class _Add:
    request: Request
    sink: _Sink


@dataclass(frozen=True, slots=True)
class _Abort:
    request_id: str


class AsyncEngine:
    """Loads an engine in a thread of its own and runs it there.

    load: makes the engine; what it raises becomes `error`, and the status "dead".
    """

    def __init__(self, load: Callable[[], Engine]) -> None:
        self._load = load
        self._commands: queue.SimpleQueue[_Add | _Abort | None] = queue.SimpleQueue()
        self._sinks: dict[str, _Sink] = {}
        self._engine: Engine | None = None
        self._thread = threading.Thread(target=self._run, name="trimtab-engine", daemon=True)
        self._loaded = threading.Event()
        self._is_stopping = False
        self.status: Status = "starting"
        self.error: BaseException | None = None

    def start(self) -> None:
        self._thread.start()

    def wait_until_loaded(self) -> None:
        """Block until the engine is ready. Raises what loading raised."""
        self._loaded.wait()
        if self.error is not None:
            raise self.error

    def stop(self) -> None:
        """End every request with an error event and join the thread."""
        self._is_stopping = True
        self._commands.put(None)
        if self._thread.is_alive():
            self._thread.join()

    @property
    def engine(self) -> Engine:
        if self._engine is None or self.status != "ready":
            reason = "is still loading" if self.status == "starting" else f"has died: {self.error}"
            raise EngineUnavailableError(f"the engine {reason}")
        return self._engine

    @property
    def info(self) -> EngineInfo:
        return self.engine.info

    def submit(self, request: Request) -> AsyncIterator[Event]:
        """Queue a request; iterate over its events up to and including the terminal one.

        Leaving the iteration early aborts the request. Raises InvalidRequestError at once for what can
        never be served, EngineUnavailableError when the engine is not ready.
        """
        self.engine.check(request)
        if request.request_id in self._sinks:
            raise InvalidRequestError(f"request_id: '{request.request_id}' is in use", "request_id")
        sink = _Sink(asyncio.get_running_loop())
        self._sinks[request.request_id] = sink
        self._commands.put(_Add(request, sink))
        return self._events(request.request_id, sink)

    def abort(self, request_id: str) -> None:
        """End a request within one step; its iterator then yields Aborted. Unknown ids are ignored."""
        self._commands.put(_Abort(request_id))

    async def _events(self, request_id: str, sink: _Sink) -> AsyncIterator[Event]:
        is_over = False
        try:
            while not is_over:
                event = await sink.events.get()
                is_over = isinstance(event, TERMINAL)
                yield event
        finally:
            if not is_over:
                self.abort(request_id)

    def _run(self) -> None:
        try:
            self._engine = self._load()
        except BaseException as error:
            self.status, self.error = "dead", error
            self._loaded.set()
            return
        self.status = "ready"
        self._loaded.set()
        try:
            self._serve(self._engine)
        except BaseException as error:
            logger.exception("the engine has died")
            self.error = error
        self._die(self._engine)

    def _serve(self, engine: Engine) -> None:
        while not self._is_stopping:
            self._take_commands(engine)
            if engine.has_work:
                self._deliver(engine.step())

    def _take_commands(self, engine: Engine) -> None:
        """Take what has come in; wait for something when there is nothing else to do."""
        is_idle = not engine.has_work
        while is_idle or not self._commands.empty():
            command = self._commands.get()
            is_idle = False
            if isinstance(command, _Add):
                engine.add(command.request)
            elif isinstance(command, _Abort):
                engine.abort(command.request_id)

    def _die(self, engine: Engine) -> None:
        self.status = "dead"
        message = "the server is shutting down" if self._is_stopping else f"the engine has died: {self.error}"
        self._deliver(engine.fail_all(message))
        self._fail_unqueued(message)

    def _fail_unqueued(self, message: str) -> None:
        """Requests that were submitted and never reached the engine get their terminal event too."""
        self._deliver([Failed(request_id, message) for request_id in list(self._sinks)])

    def _deliver(self, events: list[Event]) -> None:
        by_request: dict[str, list[Event]] = {}
        for event in events:
            by_request.setdefault(event.request_id, []).append(event)
        for request_id, own in by_request.items():
            sink = self._sinks.get(request_id)
            if sink is None:
                continue
            if isinstance(own[-1], TERMINAL):
                del self._sinks[request_id]
            try:
                sink.loop.call_soon_threadsafe(sink.put, own)
            except RuntimeError:  # the client's event loop is gone, and the client with it
                logger.debug("nobody is left to read request %s", request_id)
