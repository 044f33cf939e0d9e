"""Generation: submits the engine requests of one HTTP request together, reads them as one stream, aborts them
together."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Literal, Protocol

from starlette.types import ASGIApp, Receive, Scope, Send

from trimtab.server.api.errors import EngineFailedError, RequestTimeoutError, ShuttingDownError
from trimtab.server.api.metrics import Metrics, RequestMeter
from trimtab.server.engine.request import (
    TERMINAL,
    Aborted,
    ChoiceDone,
    Completion,
    Delta,
    EngineInfo,
    EngineStats,
    Event,
    Failed,
    Finished,
    GrammarSpec,
    Request,
)

MAX_MERGED = 64  # events of several requests that are not read yet; the others wait where they are
EngineStatus = Literal["starting", "ready", "stopping", "dead"]


class EngineClient(Protocol):
    """An engine as seen from the event loop. Every accepted request ends in exactly one terminal event."""

    @property
    def info(self) -> EngineInfo: ...

    @property
    def status(self) -> EngineStatus: ...

    @property
    def stats(self) -> EngineStats | None:
        """None where there is no engine."""
        ...

    async def prepare(self, grammar: GrammarSpec) -> None:
        """Compiles a grammar before a request with it is submitted. Raises InvalidRequestError for one that
        cannot be served, EngineUnavailableError when too many are being compiled."""
        ...

    def submit(self, request: Request) -> AsyncIterator[Event]:
        """The request's events. Raises InvalidRequestError at once for what can never be served,
        EngineUnavailableError when the engine takes none (any more)."""
        ...

    def abort(self, request_id: str) -> None:
        """Ends the request's events with Aborted. Does nothing for a request that has ended."""
        ...


@dataclass(slots=True)
class Usage:
    """Tokens of all prompts and of all choices. computed: see Finished."""

    prompt: int = 0
    cached: int = 0
    completion: int = 0
    computed: int = 0

    def add(self, event: Finished) -> None:
        """Counts one more request."""
        self.prompt += event.num_prompt_tokens
        self.cached += event.num_cached_tokens
        self.completion += event.num_completion_tokens
        self.computed += event.num_computed_tokens


class Generation:
    """Requests that differ in their prompt alone. Used as a context manager: leaving it aborts what runs.

    Choices are numbered over all prompts: the i-th choice of prompt p has index p·n + i.
    """

    def __init__(
        self,
        engine: EngineClient,
        requests: Sequence[Request],
        metrics: Metrics,
        timeout: float | None = None,
        before: Usage | None = None,
    ) -> None:
        """Submits them all, or none: raises InvalidRequestError or QueueFullError when the engine refuses
        one. timeout: seconds that they may take. before: what was computed for them beforehand."""
        self._engine, self._requests, self._timeout = engine, tuple(requests), timeout
        self._n = requests[0].sampling.n
        self._running: dict[str, AsyncIterator[Event]] = {}
        self._meter: RequestMeter | None = None  # of what was admitted
        self.usage = Usage(computed=0 if before is None else before.computed)
        try:
            for request in requests:
                self._running[request.request_id] = engine.submit(request)
            self._meter = RequestMeter(metrics, requests)
        except BaseException:
            self.abort()
            raise
        self.num_choices = self._n * len(requests)

    @property
    def usage_so_far(self) -> Usage:
        """Of the prompts, before anything is drawn."""
        return Usage(prompt=sum(len(request.prompt_token_ids) for request in self._requests))

    def __enter__(self) -> Generation:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.abort()

    def abort(self) -> None:
        """Aborts the requests that have not ended."""
        for request_id in self._running:
            self._engine.abort(request_id)
        self._running.clear()
        if self._meter is not None:
            self._meter.leave()

    async def events(self) -> AsyncIterator[tuple[int, Delta | ChoiceDone]]:
        """(choice index, event) as they come, until every request has finished; fills `usage`.

        Raises EngineFailedError when a request ends in any other way, or takes too long.
        """
        async for prompt_index, event in _in_time(_merge(list(self._running.values())), self._timeout):
            if isinstance(event, TERMINAL):
                self._running.pop(event.request_id, None)
            if self._meter is not None:
                index = 0 if isinstance(event, TERMINAL) else prompt_index * self._n + event.index
                self._meter.see(index, event)
            match event:
                case Delta() | ChoiceDone():
                    yield prompt_index * self._n + event.index, event
                case Finished():
                    self.usage.add(event)
                case Aborted():
                    raise EngineFailedError("the engine aborted the request")
                case Failed():
                    kind = ShuttingDownError if event.reason == "shutdown" else EngineFailedError
                    raise kind(event.message)

    async def gather(self) -> list[Completion]:
        """All replies in the order of their index. Raises like `events`."""
        completions = [Completion(request, i) for request in self._requests for i in range(self._n)]
        async for index, event in self.events():
            completions[index].take(event)
        return completions


class EndWhatWasBegun:
    """ASGI middleware: with an HTTP request end the generations that were begun for it, whatever came between
    their begin and whoever reads them. They are in the scope's state as `begun`."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        begun: list[Generation] = []
        scope.setdefault("state", {})["begun"] = begun
        try:
            await self._app(scope, receive, send)
        finally:
            for generation in begun:
                generation.abort()


async def _in_time(
    items: AsyncIterator[tuple[int, Event]], seconds: float | None
) -> AsyncIterator[tuple[int, Event]]:
    """Raises RequestTimeoutError where they take longer."""
    if seconds is None:
        async for item in items:
            yield item
        return
    deadline = asyncio.get_running_loop().time() + seconds
    try:
        while True:
            async with asyncio.timeout_at(deadline):
                item = await anext(items)
            yield item
    except StopAsyncIteration:
        return
    except TimeoutError as error:
        raise RequestTimeoutError(f"the request took longer than the {seconds:g} seconds it may") from error


async def _merge(streams: Sequence[AsyncIterator[Event]]) -> AsyncIterator[tuple[int, Event]]:
    if len(streams) == 1:  # the usual case needs no queue
        async for event in streams[0]:
            yield 0, event
        return
    queue: asyncio.Queue[tuple[int, Event | Exception | None]] = asyncio.Queue(MAX_MERGED)

    async def pump(index: int, stream: AsyncIterator[Event]) -> None:
        try:
            async for event in stream:
                await queue.put((index, event))
        except Exception as error:
            await queue.put((index, error))
        else:
            await queue.put((index, None))

    pumps = [asyncio.create_task(pump(index, stream)) for index, stream in enumerate(streams)]
    try:
        for _ in pumps:
            while (item := await queue.get())[1] is not None:
                if isinstance(item[1], Exception):
                    raise item[1]
                yield item[0], item[1]
    finally:
        for task in pumps:
            task.cancel()
