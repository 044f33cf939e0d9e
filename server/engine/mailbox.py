"""The mailbox of one event loop: takes a step's events from another thread, and sorts them there."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence

from trimtab.server.engine.request import TERMINAL, Event, Failed


class Mailbox:
    """Queues of the requests that were submitted from one loop and have not had their terminal event.

    The queues belong to the loop's thread; any thread may call `hand_over` and `end_all`.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.loop = loop
        self._queues: dict[str, asyncio.Queue[Event]] = {}

    def __contains__(self, request_id: str) -> bool:
        return request_id in self._queues

    @property
    def request_ids(self) -> list[str]:
        return list(self._queues)

    def open(self, request_id: str) -> asyncio.Queue[Event]:
        """Where the request's events arrive, the terminal one last; in the loop's own thread."""
        queue: asyncio.Queue[Event] = asyncio.Queue()
        self._queues[request_id] = queue
        return queue

    def hand_over(self, events: Sequence[Event]) -> bool:
        """Give the loop these events, of any loop's requests, in one wake-up. False when it is closed."""
        if not self._queues:
            return not self.loop.is_closed()
        return self._call(lambda: self._sort(events))

    def end_all(self, end: Callable[[str], Failed]) -> None:
        """Give every request that is open by then its terminal event."""
        self._call(lambda: self._sort([end(request_id) for request_id in self.request_ids]))

    def _sort(self, events: Sequence[Event]) -> None:
        """What comes after a request's terminal event is for nobody."""
        for event in events:
            queue = self._queues.get(event.request_id)
            if queue is not None:
                queue.put_nowait(event)
                if isinstance(event, TERMINAL):
                    del self._queues[event.request_id]

    def _call(self, work: Callable[[], None]) -> bool:
        try:
            self.loop.call_soon_threadsafe(work)
        except RuntimeError:
            return False
        return True
