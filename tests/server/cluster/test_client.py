"""Engines elsewhere: every request ends in one terminal event, whatever becomes of its engine."""

from __future__ import annotations

import asyncio
import pickle
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field

import pytest

from trimtab.server.cluster import client
from trimtab.server.cluster.client import RemoteEngine
from trimtab.server.cluster.replica import Message
from trimtab.server.engine.request import (
    Aborted,
    ChoiceDone,
    ContextLengthError,
    Delta,
    EngineInfo,
    EngineUnavailableError,
    Event,
    Failed,
    Finished,
    GuidanceSummary,
    InvalidRequestError,
    QueueFullError,
    Request,
)

INFO = EngineInfo("tiny", 100, 260, (257,), (), created=1)
REQUEST = Request("one", (1, 2, 3))
DELTA = Delta("one", 0, "a", ())
DONE = ChoiceDone("one", 0, "stop", GuidanceSummary(0.0, 0.0, (), (), 0), 1)
FINISHED = Finished("one", 3, 0, 1)


class BusyError(Exception):
    """What the transport says where too many wait."""


@dataclass
class Script:
    """Messages of a stream, or what is raised in their place; it waits after the last until it is
    cancelled."""

    messages: Sequence[Message | BaseException | str]
    cancelled: bool = False
    told: asyncio.Event = field(default_factory=asyncio.Event)

    def __post_init__(self) -> None:
        self._left = iter(self.messages)

    def __aiter__(self) -> AsyncIterator[Message]:
        return self

    async def __anext__(self) -> Message:
        message = next(self._left, "wait")
        if message == "wait":
            await self.told.wait()
            raise RuntimeError("the request was cancelled")
        if isinstance(message, tuple):
            raise message[0]
        return message  # type: ignore[return-value]

    def cancel(self) -> None:
        self.cancelled = True
        self.told.set()


def engine(script: Script) -> RemoteEngine:
    return RemoteEngine(INFO, lambda request: script, BusyError)


async def collect(remote: RemoteEngine) -> list[Event]:
    return [event async for event in await remote.submit(REQUEST)]


@pytest.mark.parametrize(
    "messages", [[[], [DELTA, DONE], [FINISHED]], [[], [DELTA, DONE, FINISHED], [DELTA]]]
)
def test_events_arrive_one_by_one_up_to_the_terminal_one(messages: list[Message]):
    script = Script(messages)
    assert asyncio.run(collect(engine(script))) == [DELTA, DONE, FINISHED]
    assert not script.cancelled


@pytest.mark.parametrize("end", [RuntimeError("the actor died"), StopAsyncIteration()])
@pytest.mark.parametrize("before", [[], [[DELTA], [DELTA, DONE]]])
def test_an_engine_that_goes_away_ends_its_request_in_one_failure(
    before: list[Message], end: Exception, caplog: pytest.LogCaptureFixture
):
    events = asyncio.run(collect(engine(Script([[], *before, (end,)]))))
    assert events[:-1] == [event for message in before for event in message]
    assert isinstance(events[-1], Failed)
    assert "went away" in events[-1].message
    assert "actor died" not in events[-1].message
    assert f"one went away: {type(end).__name__}" in caplog.text
    assert "actor died" not in caplog.text  # nor what it may quote


def test_an_aborted_request_is_cancelled_and_ends_so():
    script = Script([[], [DELTA]])
    remote = engine(script)

    async def work() -> list[Event]:
        events = await remote.submit(REQUEST)
        found = [await anext(events)]
        remote.abort("one")
        return found + [event async for event in events]

    assert asyncio.run(work()) == [DELTA, Aborted("one")]
    assert script.cancelled


def test_leaving_the_events_cancels_the_request():
    script = Script([[], [DELTA]])

    async def work() -> None:
        events = await engine(script).submit(REQUEST)
        await anext(events)
        await events.aclose()  # type: ignore[attr-defined]

    asyncio.run(work())
    assert script.cancelled


@pytest.mark.parametrize(
    ("message", "kind"),
    [
        ((BusyError("full"),), QueueFullError),
        ((RuntimeError("the actor died"),), EngineUnavailableError),
        ((StopAsyncIteration(),), EngineUnavailableError),
        ("wait", EngineUnavailableError),
        (InvalidRequestError("must be 0…1", "top_p"), InvalidRequestError),
        (ContextLengthError("is too long", "prompt"), ContextLengthError),
        (QueueFullError("too many"), QueueFullError),
        (EngineUnavailableError("stops"), EngineUnavailableError),
    ],
)
def test_what_no_engine_takes_is_refused_before_there_are_events(
    message: object, kind: type[Exception], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(client, "ADMISSION_SECONDS", 0.01)
    sent = pickle.loads(pickle.dumps(message)) if isinstance(message, Exception) else message
    with pytest.raises(kind) as refused:
        asyncio.run(collect(engine(Script([sent]))))  # type: ignore[list-item]
    assert type(refused.value) is kind
    assert getattr(refused.value, "param", None) == getattr(message, "param", None)
    assert "actor died" not in str(refused.value)


def test_whoever_stops_waiting_for_an_engine_cancels_the_request():
    script = Script(["wait"])

    async def work() -> None:
        submitting = asyncio.create_task(engine(script).submit(REQUEST))
        await asyncio.sleep(0)
        submitting.cancel()
        await asyncio.wait([submitting])

    asyncio.run(work())
    assert script.cancelled
