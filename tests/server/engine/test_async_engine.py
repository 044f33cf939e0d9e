from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Iterator
from typing import Any

import pytest

from trimtab.server.engine.async_engine import AsyncEngine
from trimtab.server.engine.engine import Engine
from trimtab.server.engine.request import (
    TERMINAL,
    Aborted,
    Delta,
    EngineUnavailableError,
    Event,
    Failed,
    Finished,
    InvalidRequestError,
    Request,
    SamplingParams,
)

PROMPT = tuple(range(40, 60))


@pytest.fixture
def running(make_engine: Callable[..., Engine]) -> Iterator[AsyncEngine]:
    engine = AsyncEngine(make_engine)
    engine.start()
    engine.wait_until_loaded()
    yield engine
    engine.stop()


def go(work: Coroutine[Any, Any, Any]) -> Any:
    return asyncio.run(asyncio.wait_for(work, 60))


async def collect(engine: AsyncEngine, request: Request) -> list[Event]:
    return [event async for event in engine.submit(request)]


def request(name: str, max_tokens: int = 5) -> Request:
    return Request(name, PROMPT, SamplingParams(max_tokens=max_tokens, ignore_eos=True))


def test_concurrent_requests_each_end_in_exactly_one_terminal_event(running: AsyncEngine):
    async def work() -> list[list[Event]]:
        return await asyncio.gather(*(collect(running, request(str(i), 1 + i)) for i in range(12)))

    for i, events in enumerate(go(work())):
        assert [isinstance(event, TERMINAL) for event in events] == [False] * (len(events) - 1) + [True]
        assert {event.request_id for event in events} == {str(i)}
        assert isinstance(events[-1], Finished)
        assert events[-1].num_completion_tokens == 1 + i


def test_abort_and_leaving_the_iteration_both_end_the_request(
    running: AsyncEngine, monkeypatch: pytest.MonkeyPatch
):
    aborted: list[str] = []
    abort = running.engine.abort
    monkeypatch.setattr(running.engine, "abort", lambda name: (aborted.append(name), abort(name)))

    async def work() -> None:
        events = []
        async for event in running.submit(request("aborted", 100)):
            events.append(event)
            if len(events) == 2:
                running.abort("aborted")
        assert isinstance(events[-1], Aborted)
        left = running.submit(request("left", 100))
        assert isinstance(await anext(left), Delta)
        await left.aclose()  # type: ignore[attr-defined]
        while running.engine.has_work:
            await asyncio.sleep(0.01)

    go(work())
    assert aborted == ["aborted", "left"]
    blocks = running.engine.scheduler.blocks
    assert blocks.num_free == blocks.num_usable


def test_a_bad_request_is_refused_at_once_and_the_others_go_on(running: AsyncEngine):
    async def work() -> list[Event]:
        with pytest.raises(InvalidRequestError):
            running.submit(request("bad", 1000))
        return await collect(running, request("good"))

    assert isinstance(go(work())[-1], Finished)


def test_a_dying_engine_ends_every_request_and_says_so(running: AsyncEngine, monkeypatch: pytest.MonkeyPatch):
    async def work() -> list[list[Event]]:
        first = running.submit(request("first", 100))
        await anext(first)

        def die() -> None:
            raise AssertionError("a bug of ours")

        monkeypatch.setattr(running.engine.scheduler, "schedule", die)
        rest = [event async for event in first]
        return [rest]

    for events in go(work()):
        assert isinstance(events[-1], Failed)
        assert "a bug of ours" in events[-1].message
    assert running.status == "dead"
    with pytest.raises(EngineUnavailableError, match="a bug of ours"):
        _ = running.info


def test_nothing_is_served_before_the_engine_is_ready_or_after_loading_failed():
    def fail() -> Engine:
        raise ValueError("no such model")

    engine = AsyncEngine(fail)
    with pytest.raises(EngineUnavailableError, match="loading"):
        _ = engine.info
    engine.start()
    with pytest.raises(ValueError, match="no such model"):
        engine.wait_until_loaded()
    assert engine.status == "dead"


def test_stopping_ends_live_requests_with_an_error_event(make_engine: Callable[..., Engine]):
    engine = AsyncEngine(make_engine)
    engine.start()
    engine.wait_until_loaded()

    async def work() -> list[Event]:
        events = engine.submit(request("live", 100))
        await anext(events)
        await asyncio.get_running_loop().run_in_executor(None, engine.stop)
        return [event async for event in events]

    assert isinstance(go(work())[-1], Failed)
