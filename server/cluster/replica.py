"""Replica: an engine that others stream from; requests, events and refusals are its messages."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass

from trimtab.server.api.generation import EngineClient
from trimtab.server.api.generation_defaults import SamplingDefaults
from trimtab.server.api.tokens import Tokenizer
from trimtab.server.engine.request import (
    TERMINAL,
    EngineInfo,
    EngineStats,
    EngineUnavailableError,
    Event,
    InvalidRequestError,
    QueueFullError,
    Request,
)

DEATH_SECONDS = 1.0  # that the last events of a dead engine have to get out
REFUSALS = (InvalidRequestError, EngineUnavailableError, QueueFullError)
Message = list[Event] | InvalidRequestError | EngineUnavailableError | QueueFullError
"""Of a request's stream: first a refusal, which is all, or no events; then events, the terminal one last."""


@dataclass(frozen=True, slots=True)
class Introduction:
    """What an application needs to know of an engine."""

    info: EngineInfo
    tokenizer: Tokenizer
    sampling_defaults: SamplingDefaults


class EngineReplica:
    """load: gives the engine once it is ready, and its introduction. leave: ends the process, which is of no
    use with a dead engine: somebody starts another."""

    def __init__(
        self,
        load: Callable[[], tuple[EngineClient, Introduction]],
        leave: Callable[[int], object] = os._exit,
    ) -> None:
        self._engine, self._introduction = load()
        self._leave = leave

    def introduce(self) -> Introduction:
        return self._introduction

    def stats(self) -> EngineStats | None:
        return self._engine.stats

    async def stream(self, request: Request) -> AsyncIterator[Message]:
        """The request's messages. Whoever leaves them aborts the request."""
        try:
            if request.grammar is not None:
                await self._engine.prepare(request.grammar)
            events = await self._engine.submit(request)
        except REFUSALS as refusal:
            yield refusal
            return
        finally:
            self._leave_if_dead()
        yield []
        try:
            async for batch in together(events):
                yield batch
        finally:
            self._leave_if_dead()

    def check_health(self) -> None:
        """Raises EngineUnavailableError for a dead engine."""
        if self._engine.status == "dead":
            raise EngineUnavailableError("the engine has died; its log says why")

    def _leave_if_dead(self) -> None:
        """Without a request for it, which it would refuse faster than others can take theirs."""
        if self._engine.status == "dead":
            asyncio.get_running_loop().call_later(DEATH_SECONDS, self._leave, 1)


async def together(events: AsyncIterator[Event]) -> AsyncIterator[list[Event]]:
    """Events in lists of what there was by then, up to the terminal one: a message costs more than an
    event."""
    queue: asyncio.Queue[Event] = asyncio.Queue()

    async def pump() -> None:
        async for event in events:
            queue.put_nowait(event)

    pumping = asyncio.create_task(pump())
    try:
        batch: list[Event] = []
        while not batch or not isinstance(batch[-1], TERMINAL):
            batch = [await queue.get()]
            while not queue.empty():
                batch.append(queue.get_nowait())
            yield batch
    finally:
        pumping.cancel()
