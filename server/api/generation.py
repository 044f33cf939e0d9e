"""Generation: submits the engine requests of one HTTP request together, reads them as one stream, aborts them
together."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Literal, Protocol

from starlette.types import ASGIApp, Receive, Scope, Send

from trimtab.server.api.errors import EngineFailedError, QueueTimeoutError, ShuttingDownError, too_slow
from trimtab.server.api.telemetry.account import Watcher
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

    async def submit(self, request: Request) -> AsyncIterator[Event]:
        """The request's events, once an engine has taken it. Raises InvalidRequestError for what can never be
        served, EngineUnavailableError when no engine takes it, QueueFullError when none does now."""
        ...

    def abort(self, request_id: str) -> None:
        """Ends the request's events with Aborted. Does nothing for a request that has ended."""
        ...

    async def load_head(self, folder: Path, name: str) -> None:
        """Requests can ask for a further head, if this returns. Raises HeadError."""
        ...

    async def unload_head(self, name: str) -> None:
        """No further request can ask for it. Raises HeadError."""
        ...


_FAILURES: Mapping[str, type[EngineFailedError]] = {"shutdown": ShuttingDownError, "queue": QueueTimeoutError}


@dataclass(frozen=True, slots=True)
class Deadline:
    """at: on the event loop's clock. seconds: what a request may take, for the error."""

    at: float
    seconds: float


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

    @classmethod
    async def start(
        cls,
        engine: EngineClient,
        requests: Sequence[Request],
        watch: Callable[[Sequence[Request]], Sequence[Watcher]],
        deadline: Deadline | None = None,
        before: Usage | None = None,
    ) -> Generation:
        """Submits them all, or none: raises like `submit` when the engine refuses one. watch: who is told
        of them. deadline: when they have to have ended. before: what was computed for them beforehand."""
        watchers = watch(requests)
        streams = await _submit_all(engine, requests)
        try:
            return cls(engine, requests, streams, watchers, deadline, before or Usage())
        except BaseException:
            for request in requests:
                engine.abort(request.request_id)
            raise

    def __init__(
        self,
        engine: EngineClient,
        requests: Sequence[Request],
        streams: Sequence[AsyncIterator[Event]],
        watchers: Sequence[Watcher],
        deadline: Deadline | None,
        before: Usage,
    ) -> None:
        self._engine, self._requests, self._watchers = engine, tuple(requests), watchers
        self._n = requests[0].sampling.n
        self._first = {request.request_id: self._n * i for i, request in enumerate(requests)}
        self._running = dict(zip((request.request_id for request in requests), streams, strict=True))
        self.usage = Usage(computed=before.computed)
        self.num_choices = self._n * len(requests)
        events = streams[0] if len(streams) == 1 else _merge(streams)  # the usual case needs no queue
        self._events = events if deadline is None else _in_time(events, deadline)
        self._early: list[tuple[int, Event]] = []

    @property
    def usage_so_far(self) -> Usage:
        """Of the prompts, before anything is drawn."""
        return Usage(prompt=sum(len(request.prompt_token_ids) for request in self._requests))

    @property
    def may_wait_too_long(self) -> bool:
        """Whether they may end before the engine has begun with them."""
        return self._requests[0].max_wait is not None

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
        for watcher in self._watchers:
            watcher.leave()

    async def begin(self) -> None:
        """Waits until the engine has begun with the requests. Raises what `events` raises."""
        event = await anext(self._events)
        self._early.append((self._take(event), event))

    def _take(self, event: Event) -> int:
        """The index of its choice; 0 of terminal events. Raises where a request ends otherwise than well."""
        index = 0 if isinstance(event, TERMINAL) else self._first[event.request_id] + event.index
        for watcher in self._watchers:
            watcher.see(index, event)
        if isinstance(event, TERMINAL):
            self._end(event)
        return index

    def _end(self, event: Finished | Aborted | Failed) -> None:
        self._running.pop(event.request_id, None)
        match event:
            case Finished():
                self.usage.add(event)
            case Aborted():
                raise EngineFailedError("the engine aborted the request")
            case Failed():
                raise _FAILURES.get(event.reason, EngineFailedError)(event.message)

    async def events(self) -> AsyncIterator[tuple[int, Delta | ChoiceDone]]:
        """(choice index, event) as they come, until every request has finished; fills `usage`.

        Raises EngineFailedError when a request ends in any other way, or takes too long.
        """
        for index, event in self._early:
            if not isinstance(event, TERMINAL):
                yield index, event
        self._early.clear()
        async for event in self._events:
            index = self._take(event)
            if not isinstance(event, TERMINAL):
                yield index, event

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


async def _submit_all(engine: EngineClient, requests: Sequence[Request]) -> list[AsyncIterator[Event]]:
    """At once: an engine may be far away."""
    tasks = [asyncio.create_task(engine.submit(request)) for request in requests]
    try:
        return await asyncio.gather(*tasks)
    except BaseException:
        for request, task in zip(requests, tasks, strict=True):
            if not task.cancel() and not task.cancelled() and task.exception() is None:
                engine.abort(request.request_id)
        raise


async def _in_time(events: AsyncIterator[Event], deadline: Deadline) -> AsyncIterator[Event]:
    """Raises RequestTimeoutError where they take longer."""
    try:
        while True:
            async with asyncio.timeout_at(deadline.at):
                event = await anext(events)
            yield event
    except StopAsyncIteration:
        return
    except TimeoutError as error:
        raise too_slow(deadline.seconds) from error


async def _merge(streams: Sequence[AsyncIterator[Event]]) -> AsyncIterator[Event]:
    queue: asyncio.Queue[Event | Exception | None] = asyncio.Queue(MAX_MERGED)

    async def pump(stream: AsyncIterator[Event]) -> None:
        try:
            async for event in stream:
                await queue.put(event)
        except Exception as error:
            await queue.put(error)
        else:
            await queue.put(None)

    pumps = [asyncio.create_task(pump(stream)) for stream in streams]
    try:
        for _ in pumps:
            while (item := await queue.get()) is not None:
                if isinstance(item, Exception):
                    raise item
                yield item
    finally:
        for task in pumps:
            task.cancel()
