"""Waiting line: choices that wait to run, a queue for each tenant, of which the least served is the next. No
torch here."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import chain, count

from trimtab.server.engine.lane import Choice


@dataclass(slots=True)
class _Queue:
    """Of one tenant, in the order of arrival; and the short ones among them."""

    every: deque[Choice] = field(default_factory=deque)
    short: deque[Choice] = field(default_factory=deque)


class WaitingLine:
    """Fair queueing with a virtual time for each tenant, the tokens that were computed for it (as in Demers,
    Keshav and Shenker, 1989): the next is the first of the tenant with the fewest, and of the one that has
    waited longest for its turn where they are equal. Within a tenant the first come is the first served.

    Who begins to wait has no fewer than the least served of those who do, so that nobody saves up a turn; and
    nobody is ever more than `max_ahead` tokens ahead of these, so that what was served while others asked for
    nothing is soon forgotten.
    """

    def __init__(self, max_short: int) -> None:
        """max_short: tokens that the prompt of a short choice has at most; and `max_ahead`: a step's."""
        self._max_short = self._max_ahead = max_short
        self._queues: dict[str, _Queue] = {}
        self._served: dict[str, int] = {}
        self._turns: dict[str, int] = {}
        self._clock = count()
        self._level = 0

    def __len__(self) -> int:
        return sum(len(queue.every) for queue in self._queues.values())

    def __iter__(self) -> Iterator[Choice]:
        """Tenant by tenant. May be called from any thread."""
        return chain.from_iterable([list(queue.every) for queue in list(self._queues.values())])

    @property
    def is_shared(self) -> bool:
        """Whether there has been more than one tenant."""
        return len(self._served) > 1

    @property
    def first(self) -> Choice | None:
        """The next one."""
        return self._queues[self._next(self._queues)].every[0] if self._queues else None

    @property
    def first_short(self) -> Choice | None:
        """The next one of the short ones."""
        tenants = [tenant for tenant, queue in self._queues.items() if queue.short]
        return self._queues[self._next(tenants)].short[0] if tenants else None

    @property
    def short(self) -> Iterator[Choice]:
        """The short ones, tenant by tenant."""
        return chain.from_iterable(queue.short for queue in self._queues.values())

    def append(self, choice: Choice) -> None:
        self._classify(choice)
        queue = self._queue_of(choice)
        queue.every.append(choice)
        if choice.is_short:
            queue.short.append(choice)

    def put_first(self, choices: Sequence[Choice]) -> None:
        """Before all of their tenant's that wait, in this order."""
        for choice in reversed(choices):
            self._classify(choice)
            queue = self._queue_of(choice)
            queue.every.appendleft(choice)
            if choice.is_short:
                queue.short.appendleft(choice)

    def remove(self, choice: Choice) -> None:
        queue = self._queues[choice.tenant]
        queue.every.remove(choice)
        if choice.is_short:
            queue.short.remove(choice)
        if not queue.every:
            del self._queues[choice.tenant]

    def charge(self, tenant: str, num_tokens: int) -> None:
        """So many tokens are computed for a tenant, whether it waits for more or not."""
        self._turns[tenant] = next(self._clock)
        self._served[tenant] += num_tokens
        self._level = min((self._served[each] for each in self._queues), default=self._level)
        self._served[tenant] = min(self._served[tenant], self._level + self._max_ahead)

    def in_turn(self, choices: Sequence[Choice]) -> list[Choice]:
        """Those of the least served tenants first; of equals in the order in which they are."""
        return sorted(choices, key=lambda choice: self._served[choice.tenant])

    def _queue_of(self, choice: Choice) -> _Queue:
        tenant = choice.tenant
        if tenant not in self._queues:
            self._served[tenant] = max(self._served.get(tenant, 0), self._level)
            self._turns.setdefault(tenant, -1)
            self._queues[tenant] = _Queue()
        return self._queues[tenant]

    def _next(self, tenants: Iterator[str] | Sequence[str] | dict[str, _Queue]) -> str:
        return min(tenants, key=lambda tenant: (self._served[tenant], self._turns[tenant]))

    def _classify(self, choice: Choice) -> None:
        num_shared = 0 if choice.leader is None else choice.num_prompt_tokens - 1
        if choice.is_pool:
            num_shared = (len(choice.lanes) - 1) * (choice.num_prompt_tokens - 1)
        choice.is_short = sum(lane.length for lane in choice.lanes) - num_shared <= self._max_short
