"""Asynchronous engine: runs an engine in a thread of its own, behind submit() → events, and abort()."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import queue
import threading
from collections import deque
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from trimtab.server.engine.engine import Engine
from trimtab.server.engine.failure import failed, shut_down
from trimtab.server.engine.grammar import Grammar
from trimtab.server.engine.host_memory import keep_freed_memory
from trimtab.server.engine.request import (
    TERMINAL,
    EngineInfo,
    EngineStats,
    EngineUnavailableError,
    Event,
    Failed,
    GrammarSpec,
    InvalidRequestError,
    QueueFullError,
    Request,
)

logger = logging.getLogger(__name__)
NUM_COMPILERS, MAX_COMPILING = 2, 32  # grammars at once, and with those that wait
MAX_UNREAD = 1024  # events of each reply that wait for whoever asked: far more than a loop falls behind by
Status = Literal["starting", "ready", "stopping", "dead"]
_UNAVAILABLE: dict[Status, str] = {
    "starting": "the engine is still loading",
    "stopping": "the server is shutting down",
    "dead": "the engine has died; the server's log says why",
}


@dataclass(slots=True)
class Load:
    """Of one tenant: requests that are admitted and have not ended, and the tokens of their prompts and
    replies."""

    requests: int = 0
    tokens: int = 0


@dataclass(frozen=True, slots=True)
class QueueLimits:
    """On what is admitted and has not ended, of all tenants together. Who has less than an equal part is let
    in beyond them, so that nobody can keep others out; together they come to less than twice as much."""

    max_requests: int | None = None
    max_tokens: int | None = None

    def check(self, loads: Mapping[str, Load], tenant: str, num_tokens: int) -> None:
        """loads: of those that have any. Raises QueueFullError where a tenant's next request is too many, or
        its tokens are."""
        own, num_tenants = loads.get(tenant, Load()), len({*loads, tenant})
        num_before = sum(load.requests for load in loads.values())
        num_after = sum(load.tokens for load in loads.values()) + num_tokens

        def is_too_much(most: int | None, total: int, mine: int) -> bool:
            return most is not None and total > most and mine * num_tenants > most

        if is_too_much(self.max_requests, num_before + 1, own.requests + 1):
            raise QueueFullError(f"{num_before} requests are under way; try again in a moment")
        if num_before and is_too_much(self.max_tokens, num_after, own.tokens + num_tokens):
            raise QueueFullError("too many tokens are under way; try again in a moment")


@dataclass(frozen=True, slots=True)
class _Add:
    request: Request
    grammar: Grammar | None


@dataclass(frozen=True, slots=True)
class _Abort:
    request_id: str


@dataclass(frozen=True, slots=True)
class _Call:
    """Work between two steps. done: told of its end, or of what it raised."""

    work: Callable[[Engine], None]
    done: Future[None]


class AsyncEngine:
    """Loads an engine in a thread of its own and runs it there.

    Events of a step leave the thread together, one wake-up for each event loop that has requests.

    load: makes the engine; what it raises becomes `error`, and the status "dead". limits: on all requests
    that are admitted and have not ended.
    """

    def __init__(self, load: Callable[[], Engine], limits: QueueLimits | None = None) -> None:
        self._load, self._limits = load, limits or QueueLimits()
        self._commands: queue.SimpleQueue[_Add | _Abort | _Call | None] = queue.SimpleQueue()
        self._lock = threading.Lock()  # of the mailboxes and of the status: who comes in, and when no more
        self._mailboxes: dict[asyncio.AbstractEventLoop, Mailbox] = {}
        self._engine: Engine | None = None
        self._thread = threading.Thread(target=self._run, name="trimtab-engine", daemon=True)
        self._loaded = threading.Event()
        self._compilers = ThreadPoolExecutor(NUM_COMPILERS, "trimtab-grammar")
        self._compiling: set[Future[Grammar]] = set()
        self._leaving: set[str] = set()  # heads, as long as a request could still come too late for one
        self._is_over = False
        self.status: Status = "starting"
        self.error: BaseException | None = None

    def start(self) -> None:
        keep_freed_memory()
        self._thread.start()

    def wait_until_loaded(self) -> None:
        """Block until the engine is ready. Raises what loading raised."""
        self._loaded.wait()
        if self.error is not None:
            raise self.error

    def stop_admitting(self) -> None:
        """Refuse requests from now on, and go on with those that are under way."""
        with self._lock:
            if self.status == "ready":
                self.status = "stopping"

    def stop(self, timeout: float | None = None) -> None:
        """End every request with an error event, at once, and join the thread for up to `timeout` seconds."""
        with self._lock:
            self._is_over = True
            self.status = "stopping" if self.status == "ready" else self.status
        self._end_all(shut_down)
        self._commands.put(None)
        self._compilers.shutdown(wait=False)
        if self._thread.is_alive():
            self._thread.join(timeout)

    @property
    def engine(self) -> Engine:
        if self._engine is None or self.status in ("starting", "dead"):
            raise EngineUnavailableError(_UNAVAILABLE[self.status])
        return self._engine

    @property
    def info(self) -> EngineInfo:
        return self.engine.info

    @property
    def stats(self) -> EngineStats | None:
        """None while there is no engine."""
        return None if self._engine is None or self.status in ("starting", "dead") else self._engine.stats

    async def prepare(self, grammar: GrammarSpec) -> None:
        """Compile a request's grammar before it is submitted, beside everything else that goes on.

        Raises InvalidRequestError for one that cannot be served, EngineUnavailableError where too many wait.
        """
        if grammar in self.engine.grammars:
            return
        if len(self._compiling) >= MAX_COMPILING:
            raise EngineUnavailableError("too many grammars are being compiled; try again in a moment")
        compiling = self._compilers.submit(self.engine.grammars.compile, grammar)
        self._compiling.add(compiling)
        compiling.add_done_callback(self._compiling.discard)
        await asyncio.wrap_future(compiling)

    async def submit(self, request: Request) -> AsyncIterator[Event]:
        """Queue a request, whose grammar was prepared; iterate over its events up to and including the
        terminal one.

        Leaving the iteration early aborts the request. Raises InvalidRequestError at once for what can
        never be served, EngineUnavailableError when the engine is not ready, QueueFullError where no more is
        admitted now.
        """
        self.engine.check(request)
        for name in self._leaving.intersection(name for name, _ in request.guidance.heads):
            raise InvalidRequestError("is being unloaded", f"guidance.heads.{name}")
        grammar = None if request.grammar is None else self.engine.grammars.compile(request.grammar)
        inbox = self._open(request)
        self._commands.put(_Add(request, grammar))
        return self._events(request.request_id, inbox)

    async def load_head(self, folder: Path, name: str) -> None:
        """Put a head in between two steps, once all of it has been read and fits. Raises HeadError for one
        that cannot be had, which changes nothing."""
        loaded = await asyncio.to_thread(self.engine.read_head, folder, name)
        await self._between_steps(lambda engine: engine.add_head(loaded))

    async def unload_head(self, name: str) -> None:
        """Let no further request ask for a head. Raises HeadError where there is none."""
        self._leaving.add(name)
        try:
            await self._between_steps(lambda engine: engine.drop_head(name))
        finally:
            self._leaving.discard(name)

    async def _between_steps(self, work: Callable[[Engine], None]) -> None:
        call = _Call(work, Future())
        with self._lock:
            if self.status != "ready":
                raise EngineUnavailableError(_UNAVAILABLE[self.status])
            self._commands.put(call)
        await asyncio.wrap_future(call.done)

    def abort(self, request_id: str) -> None:
        """End a request within one step; its iterator then yields Aborted. Unknown ids are ignored."""
        self._commands.put(_Abort(request_id))

    def _open(self, request: Request) -> Inbox:
        """Where the request's events will arrive. One of them will be terminal, whatever comes: this door is
        closed before all requests are ended, and every mailbox that was made here is then told."""
        with self._lock:
            if self.status != "ready":
                raise EngineUnavailableError(_UNAVAILABLE[self.status])
            boxes = self._mailboxes.values()
            if any(request.request_id in box for box in boxes):
                raise InvalidRequestError(f"'{request.request_id}' is in use", "request_id")
            loads: dict[str, Load] = {}
            for box in boxes:
                box.add_to(loads)
            self._limits.check(loads, request.tenant, request.num_tokens)
            loop = asyncio.get_running_loop()
            if loop not in self._mailboxes:
                self._mailboxes[loop] = Mailbox(loop, self.abort)
            return self._mailboxes[loop].open(request)

    async def _events(self, request_id: str, inbox: Inbox) -> AsyncIterator[Event]:
        is_over = False
        try:
            while not is_over:
                while not inbox.events:
                    await inbox.more()
                event = inbox.events.popleft()
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
        with self._lock:
            self.status = "stopping" if self._is_over else "ready"
        self._loaded.set()
        try:
            self._serve(self._engine)
        except BaseException as error:
            logger.exception("the engine has died")
            with self._lock:
                self.status, self.error = "dead", error
            self._end_all(lambda request_id: failed(request_id, "the engine has died"))
        finally:
            self._refuse_calls()

    def _serve(self, engine: Engine) -> None:
        while not self._is_over:
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
                self._add(engine, command)
            elif isinstance(command, _Abort):
                engine.abort(command.request_id)
            elif isinstance(command, _Call):
                _do(command, engine)

    def _add(self, engine: Engine, command: _Add) -> None:
        request_id = command.request.request_id
        try:
            engine.add(command.request, command.grammar)
        except Exception as error:  # it was checked before: a fault of ours, and this request's alone
            logger.error("request %s cannot be added", request_id, exc_info=error)
            self._deliver([failed(request_id)])

    def _refuse_calls(self) -> None:
        """Nobody takes them any more, nor do further ones come."""
        with contextlib.suppress(queue.Empty):
            while True:
                command = self._commands.get_nowait()
                if isinstance(command, _Call) and command.done.set_running_or_notify_cancel():
                    command.done.set_exception(EngineUnavailableError(_UNAVAILABLE[self.status]))

    def _deliver(self, events: list[Event]) -> None:
        """Hand a step's events to every loop that has requests; each picks out its own."""
        if not events:
            return
        for box in self._boxes():
            if not box.hand_over(events):  # its loop is gone, and with it whoever listened there
                with self._lock:
                    self._mailboxes.pop(box.loop, None)
                for request_id in box.request_ids:
                    self.abort(request_id)

    def _end_all(self, end: Callable[[str], Failed]) -> None:
        for box in self._boxes():
            box.end_all(end)

    def _boxes(self) -> list[Mailbox]:
        with self._lock:
            return list(self._mailboxes.values())


def _do(call: _Call, engine: Engine) -> None:
    if not call.done.set_running_or_notify_cancel():
        return
    try:
        call.work(engine)
    except Exception as error:
        call.done.set_exception(error)
    else:
        call.done.set_result(None)


class Inbox:
    """Events of a request that have not been read, by the one who reads them; in the thread of one loop. It
    does what an asyncio.Queue would in half the time, once for every token.

    most: that may wait.
    """

    __slots__ = ("_loop", "_more", "events", "most", "request")

    def __init__(self, loop: asyncio.AbstractEventLoop, request: Request) -> None:
        self._loop, self.request = loop, request
        self.events: deque[Event] = deque()
        self.most = MAX_UNREAD * request.sampling.n + len(request.given)  # which come many at a time
        self._more: asyncio.Future[None] | None = None

    def put(self, event: Event) -> None:
        self.events.append(event)
        if self._more is not None:
            if not self._more.done():  # its reader may have been cancelled
                self._more.set_result(None)
            self._more = None

    def more(self) -> asyncio.Future[None]:
        """Done as soon as there are events."""
        self._more = self._loop.create_future()
        return self._more


class Mailbox:
    """Inboxes of the requests that were submitted from one loop and have not had their terminal event.

    They belong to the loop's thread; any thread may call `hand_over` and `end_all`. A request whose
    events are not read is ended, so that no client who takes nothing makes others' memory run out.

    abort: told of it.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop, abort: Callable[[str], None]) -> None:
        self.loop, self._abort = loop, abort
        self._inboxes: dict[str, Inbox] = {}
        self._loads: dict[str, Load] = {}  # of each tenant

    def __contains__(self, request_id: str) -> bool:
        return request_id in self._inboxes

    @property
    def request_ids(self) -> list[str]:
        return list(self._inboxes)

    def add_to(self, loads: dict[str, Load]) -> None:
        """What each tenant has open here."""
        for tenant, own in self._loads.items():
            load = loads.setdefault(tenant, Load())
            load.requests += own.requests
            load.tokens += own.tokens

    def open(self, request: Request) -> Inbox:
        """Where the request's events arrive, the terminal one last; in the loop's own thread."""
        self._inboxes[request.request_id] = inbox = Inbox(self.loop, request)
        load = self._loads.setdefault(request.tenant, Load())
        load.requests += 1
        load.tokens += request.num_tokens
        return inbox

    def hand_over(self, events: Sequence[Event]) -> bool:
        """Give the loop these events, of any loop's requests, in one wake-up. False when it is closed."""
        if not self._inboxes:
            return not self.loop.is_closed()
        return self._call(lambda: self._sort(events))

    def end_all(self, end: Callable[[str], Failed]) -> None:
        """Give every request that is open by then its terminal event."""
        self._call(lambda: self._sort([end(request_id) for request_id in self.request_ids]))

    def _sort(self, events: Sequence[Event]) -> None:
        """What comes after a request's terminal event is for nobody."""
        for event in events:
            inbox = self._inboxes.get(event.request_id)
            if inbox is None:
                continue
            if len(inbox.events) > inbox.most:
                self._cut(inbox)
                continue
            inbox.put(event)
            if isinstance(event, TERMINAL):
                self._close(inbox.request)

    def _cut(self, inbox: Inbox) -> None:
        """What was not read is dropped."""
        request_id = inbox.request.request_id
        logger.error("the events of %s are not read; it is ended", request_id)
        inbox.events.clear()
        inbox.put(Failed(request_id, "the reply was not read as fast as it was written"))
        self._close(inbox.request)
        self._abort(request_id)

    def _close(self, request: Request) -> None:
        del self._inboxes[request.request_id]
        load = self._loads[request.tenant]
        load.requests -= 1
        load.tokens -= request.num_tokens
        if not load.requests:
            del self._loads[request.tenant]

    def _call(self, work: Callable[[], None]) -> bool:
        try:
            self.loop.call_soon_threadsafe(work)
        except RuntimeError:
            return False
        return True
