"""Generation: submits the engine requests of one HTTP request together, reads them as one stream, aborts them
together."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from types import TracebackType
from typing import Literal, Protocol, TypeVar

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

T = TypeVar("T")
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


class Deadline:
    """The end of the seconds that a request may take from now; None for any."""

    def __init__(self, seconds: float | None) -> None:
        self._seconds = seconds
        self._at = None if seconds is None else asyncio.get_running_loop().time() + seconds

    @asynccontextmanager
    async def kept(self) -> AsyncIterator[None]:
        """Raises RequestTimeoutError where what is within takes longer."""
        try:
            async with asyncio.timeout_at(self._at):
                yield
        except TimeoutError as error:
            what = f"the request took longer than the {self._seconds:g} seconds it may"
            raise RequestTimeoutError(what) from error

    async def all_of(self, items: AsyncIterator[T]) -> AsyncIterator[T]:
        """Raises RequestTimeoutError where they take longer."""
        if self._at is None:
            async for item in items:
                yield item
            return
        while True:
            try:
                async with self.kept():
                    item = await anext(items)
            except StopAsyncIteration:
                return
            yield item


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
        metrics: Metrics,
        timeout: float | None = None,
        before: Usage | None = None,
    ) -> Generation:
        """Submits them all, or none: raises like `submit` when the engine refuses one, and
        RequestTimeoutError. timeout: seconds that they may take. before: what was computed for them
        beforehand."""
        deadline, meter = Deadline(timeout), RequestMeter(metrics, requests)
        async with deadline.kept():
            streams = await _submit_all(engine, requests)
        return cls(engine, requests, streams, meter, deadline, before or Usage())

    def __init__(
        self,
        engine: EngineClient,
        requests: Sequence[Request],
        streams: Sequence[AsyncIterator[Event]],
        meter: RequestMeter,
        deadline: Deadline,
        before: Usage,
    ) -> None:
        self._engine, self._requests, self._meter, self._deadline = engine, tuple(requests), meter, deadline
        self._n = requests[0].sampling.n
        self._running = dict(zip((request.request_id for request in requests), streams, strict=True))
        self.usage = Usage(computed=before.computed)
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
        self._meter.leave()

    async def events(self) -> AsyncIterator[tuple[int, Delta | ChoiceDone]]:
        """(choice index, event) as they come, until every request has finished; fills `usage`.

        Raises EngineFailedError when a request ends in any other way, or takes too long.
        """
        async for prompt_index, event in self._deadline.all_of(_merge(list(self._running.values()))):
            if isinstance(event, TERMINAL):
                self._running.pop(event.request_id, None)
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


async def _merge(streams: Sequence[AsyncIterator[Event]]) -> AsyncIterator[tuple[int, Event]]:
    if len(streams) == 1:  # the usual case needs no queue
        async for event in streams[0]:
            yield 0, event
        return
    queue: asyncio.Queue[tuple[int, Event | None]] = asyncio.Queue()

    async def pump(index: int, stream: AsyncIterator[Event]) -> None:
        try:
            async for event in stream:
                queue.put_nowait((index, event))
        finally:
            queue.put_nowait((index, None))

    pumps = [asyncio.create_task(pump(index, stream)) for index, stream in enumerate(streams)]
    try:
        for _ in pumps:
            while (item := await queue.get())[1] is not None:
                yield item[0], item[1]
        await asyncio.gather(*pumps)  # raises what a stream raised
    finally:
        for task in pumps:
            task.cancel()
