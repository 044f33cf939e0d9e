"""Replicas: refusals are messages, leaving a stream aborts its request, and a dead engine takes its process
along."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Any

import pytest

from trimtab.server.cluster import replica
from trimtab.server.cluster.replica import EngineReplica, Message
from trimtab.server.engine.request import (
    Delta,
    EngineUnavailableError,
    Event,
    Failed,
    Finished,
    GrammarSpec,
    InvalidRequestError,
    QueueFullError,
    Request,
)

DELTA, FINISHED = Delta("one", 0, "a", ()), Finished("one", 3, 0, 1)


@dataclass
class ScriptedEngine:
    events: list[Event] = field(default_factory=list)
    refusal: Exception | None = None
    status: str = "ready"
    stats: None = None
    pause: float = 0.0
    prepared: list[GrammarSpec] = field(default_factory=list)
    was_left: bool = False

    async def prepare(self, grammar: GrammarSpec) -> None:
        self.prepared.append(grammar)

    async def submit(self, request: Request) -> AsyncIterator[Event]:
        if self.refusal is not None:
            raise self.refusal
        return self._events()

    async def _events(self) -> AsyncIterator[Event]:
        try:
            for event in self.events:
                yield event
                await asyncio.sleep(self.pause)
        except BaseException:
            self.was_left = True
            raise


def make(engine: ScriptedEngine, left: list[int]) -> EngineReplica:
    introduction: Any = None
    return EngineReplica(lambda: (engine, introduction), left.append)  # type: ignore[arg-type, return-value]


def run(engine: ScriptedEngine, request: Request, left: list[int] | None = None) -> list[Message]:
    async def work() -> list[Message]:
        messages = [m async for m in make(engine, [] if left is None else left).stream(request)]
        await asyncio.sleep(0.02)
        return messages

    return asyncio.run(work())


@pytest.mark.parametrize("pause", [0.0, 0.001])
def test_a_request_is_taken_and_its_events_follow_in_order(pause: float):
    engine = ScriptedEngine([DELTA, DELTA, DELTA, FINISHED], pause=pause)
    grammar = GrammarSpec("regex", "a*")
    messages = run(engine, Request("one", (1, 2, 3), grammar=grammar))
    assert messages[0] == []
    assert all(messages[1:])
    assert [e for message in messages for e in message] == engine.events  # type: ignore[union-attr]
    assert engine.prepared == [grammar]


@pytest.mark.parametrize(
    "refusal", [InvalidRequestError("no", "n"), QueueFullError("no"), EngineUnavailableError("no")]
)
def test_a_refusal_is_the_only_message(refusal: Exception):
    assert run(ScriptedEngine(refusal=refusal), Request("one", (1,))) == [refusal]


def test_leaving_the_stream_leaves_the_engines_events():
    engine = ScriptedEngine([DELTA] * 100, pause=0.001)

    async def work() -> None:
        stream = make(engine, []).stream(Request("one", (1,)))
        await anext(stream)
        await anext(stream)
        await stream.aclose()  # type: ignore[attr-defined]
        while not engine.was_left:  # not by the loop's end
            await asyncio.sleep(0.001)

    asyncio.run(work())


@pytest.mark.parametrize("status", ["ready", "dead"])
@pytest.mark.parametrize("refusal", [None, EngineUnavailableError("has died")])
def test_a_dead_engine_takes_its_process_along(
    status: str, refusal: Exception | None, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(replica, "DEATH_SECONDS", 0.0)
    left: list[int] = []
    engine = ScriptedEngine([DELTA, Failed("one", "died")], refusal, status)
    run(engine, Request("one", (1,)), left)
    assert set(left) == ({1} if status == "dead" else set())
    if status == "dead":
        with pytest.raises(EngineUnavailableError):
            make(engine, []).check_health()
    else:
        make(engine, []).check_health()
