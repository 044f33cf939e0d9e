from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch
from held_steps import held_steps

from trimtab.server.engine.async_engine import MAX_UNREAD, AsyncEngine, Load, Mailbox
from trimtab.server.engine.engine import Engine
from trimtab.server.engine.grammar import Grammar
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
    return [event async for event in await engine.submit(request)]


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
        with held_steps(running.engine, after=4) as go_on:
            async for event in await running.submit(request("aborted", 100)):
                events.append(event)
                if len(events) == 2:
                    running.abort("aborted")
                    go_on.set()
        assert isinstance(events[-1], Aborted)
        with held_steps(running.engine, after=3):
            left = await running.submit(request("left", 100))
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
            await running.submit(request("bad", 1000))
        return await collect(running, request("good"))

    assert isinstance(go(work())[-1], Finished)


def fail_with(error: BaseException) -> Callable[..., None]:
    def fail(*_: object, **__: object) -> None:
        raise error

    return fail


def test_a_dying_engine_ends_every_request_and_keeps_its_reason_to_the_log(
    running: AsyncEngine, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
):
    async def work() -> list[list[Event]]:
        streams = [await running.submit(request(str(i), 100)) for i in range(3)]
        for stream in streams:
            await anext(stream)
        monkeypatch.setattr(running.engine.runner, "run", fail_with(torch.AcceleratorError("a secret")))
        return [[event async for event in stream] for stream in streams]

    for events in go(work()):
        assert [type(event) for event in events if isinstance(event, TERMINAL)] == [Failed]
        assert "secret" not in events[-1].message
    assert running.status == "dead"
    with pytest.raises(EngineUnavailableError) as refused:
        _ = running.info
    assert "secret" not in str(refused.value)
    assert "a secret" in caplog.text


def test_a_request_that_cannot_be_added_fails_alone(running: AsyncEngine, monkeypatch: pytest.MonkeyPatch):
    add = running.engine.add

    def add_all_but_one(asked: Request, grammar: Grammar | None) -> None:
        if asked.request_id == "bad":
            raise KeyError("a secret")
        add(asked, grammar)

    monkeypatch.setattr(running.engine, "add", add_all_but_one)

    async def work() -> list[list[Event]]:
        return await asyncio.gather(*(collect(running, request(name)) for name in ("bad", "good", "fine")))

    bad, *others = go(work())
    assert [type(event) for event in bad] == [Failed]
    assert "secret" not in bad[0].message
    assert [type(events[-1]) for events in others] == [Finished, Finished]


class StubEngine:
    """Draws nothing: every request has one Delta at each step. Dies at the step it is told."""

    def __init__(self, lifetime: int) -> None:
        self.lifetime, self.live = lifetime, set[str]()

    @property
    def has_work(self) -> bool:
        return bool(self.live)

    def check(self, _: Request) -> None: ...

    def add(self, request: Request, grammar: Grammar | None) -> None:
        self.live.add(request.request_id)

    def abort(self, request_id: str) -> None:
        self.live.discard(request_id)

    def step(self) -> list[Event]:
        self.lifetime -= 1
        if self.lifetime < 0:
            raise torch.AcceleratorError("a secret")
        return [Delta(request_id, 0, "x", ()) for request_id in self.live]


@pytest.mark.parametrize("end", ["death", "stop"])
def test_a_request_that_races_the_end_is_refused_or_gets_its_terminal_event(end: str):
    async def submit_all(engine: AsyncEngine, name: int) -> int:
        """How many were taken."""
        for i in range(1000):
            try:
                events = await engine.submit(request(f"{name} {i}"))
            except EngineUnavailableError:
                return i
            if i % 7 == 0:
                assert [isinstance(event, TERMINAL) async for event in events][-1]
                continue
            streams.append(events)
            await asyncio.sleep(0)
        raise AssertionError("nobody said that it is over")

    streams: list[AsyncIterator[Event]] = []

    async def work(engine: AsyncEngine) -> None:
        stopping = threading.Timer(0.002, engine.stop)
        if end == "stop":
            stopping.start()
        await asyncio.gather(*(submit_all(engine, name) for name in range(3)))
        for stream in streams:
            assert sum([isinstance(event, TERMINAL) async for event in stream]) == 1
        stopping.join() if end == "stop" else None

    for turn in range(30):
        streams.clear()
        engine = AsyncEngine(lambda: StubEngine(3 * turn if end == "death" else 10**9))  # type: ignore[return-value, arg-type]  # noqa: B023
        engine.start()
        engine.wait_until_loaded()
        go(work(engine))
        engine.stop()


def test_a_step_wakes_each_event_loop_once(running: AsyncEngine, monkeypatch: pytest.MonkeyPatch):
    steps, step = [0], running.engine.step
    monkeypatch.setattr(running.engine, "step", lambda: (steps.__setitem__(0, steps[0] + 1), step())[1])
    wakes = [0]

    async def work() -> list[list[Event]]:
        loop = asyncio.get_running_loop()
        call = loop.call_soon_threadsafe

        def count(*args: Any, **options: Any) -> Any:
            wakes[0] += threading.current_thread().name == "trimtab-engine"
            return call(*args, **options)

        monkeypatch.setattr(loop, "call_soon_threadsafe", count)
        return await asyncio.gather(*(collect(running, request(str(i), 20)) for i in range(8)))

    assert len(go(work())) == 8
    assert 0 < wakes[0] <= steps[0]


def test_two_loops_each_get_their_own_events(running: AsyncEngine):
    async def work(name: str) -> list[list[Event]]:
        return await asyncio.gather(*(collect(running, request(f"{name}{i}", 12)) for i in range(4)))

    with ThreadPoolExecutor(2) as pool:
        for name, results in zip("ab", pool.map(lambda name: go(work(name)), "ab"), strict=True):
            for i, events in enumerate(results):
                assert {event.request_id for event in events} == {f"{name}{i}"}
                assert isinstance(events[-1], Finished)


def test_requests_of_a_loop_that_is_gone_are_aborted(running: AsyncEngine, monkeypatch: pytest.MonkeyPatch):
    loop, aborted = asyncio.new_event_loop(), list[str]()
    abort = running.engine.abort
    monkeypatch.setattr(running.engine, "abort", lambda name: (aborted.append(name), abort(name)))

    async def leave_behind() -> None:
        await anext(await running.submit(request("left behind", 100)))

    with held_steps(running.engine, after=3):
        loop.run_until_complete(leave_behind())
        loop.close()
    deadline = time.monotonic() + 10
    while running.engine.has_work and time.monotonic() < deadline:
        time.sleep(0.01)
    assert (running.engine.has_work, aborted) == (False, ["left behind"])
    assert isinstance(go(collect(running, request("left behind")))[-1], Finished)


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


def test_stopping_ends_live_requests_with_an_error_event_even_in_a_step_that_lasts(
    make_engine: Callable[..., Engine], monkeypatch: pytest.MonkeyPatch
):
    engine = AsyncEngine(make_engine)
    engine.start()
    engine.wait_until_loaded()

    async def work() -> list[Event]:
        with held_steps(engine.engine, after=3):
            events = await engine.submit(request("live", 100))
            await anext(events)
            await asyncio.get_running_loop().run_in_executor(None, engine.stop, 0.1)
            with pytest.raises(EngineUnavailableError, match="shutting down"):
                await engine.submit(request("late"))
            return [event async for event in events]

    last = go(work())[-1]
    assert isinstance(last, Failed)
    assert last.reason == "shutdown"


def test_an_engine_that_is_stopped_while_it_loads_admits_nothing(make_engine: Callable[..., Engine]):
    release = threading.Event()
    engine = AsyncEngine(lambda: (release.wait(30), make_engine())[1])
    engine.start()
    engine.stop(0.01)
    release.set()
    engine.wait_until_loaded()

    async def work() -> None:
        await engine.submit(request("late"))

    with pytest.raises(EngineUnavailableError, match="shutting down"):
        go(work())


def test_an_engine_that_admits_no_more_goes_on_with_what_it_has(running: AsyncEngine):
    async def work() -> list[Event]:
        with held_steps(running.engine, after=3):
            events = await running.submit(request("live", 50))
            await anext(events)
            running.stop_admitting()
            with pytest.raises(EngineUnavailableError, match="shutting down"):
                await running.submit(request("late"))
        return [event async for event in events]

    assert isinstance(go(work())[-1], Finished)


def test_a_request_whose_events_are_not_read_is_ended_and_no_other():
    async def fill() -> None:
        aborted: list[str] = []
        box = Mailbox(asyncio.get_running_loop(), aborted.append)
        slow, quick = (box.open(Request(name, (1,), SamplingParams())) for name in ("slow", "quick"))
        for _ in range(MAX_UNREAD + 2):
            box.hand_over([Delta("slow", 0, "", ()), Delta("quick", 0, "", ())])
            await asyncio.sleep(0)
            assert isinstance(quick.events.popleft(), Delta)
        assert [type(event) for event in slow.events] == [Failed]
        assert (aborted, box.request_ids) == (["slow"], ["quick"])
        loads: dict[str, Load] = {}
        box.add_to(loads)
        assert [(load.requests, load.tokens) for load in loads.values()] == [(1, 17)]

    asyncio.run(fill())
