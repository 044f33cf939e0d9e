"""Account of a request: what its log lines and its trace tell of it."""

from __future__ import annotations

from collections.abc import Sequence
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

from trimtab.server.engine.request import Delta, Event, Finished, Request

if TYPE_CHECKING:
    from opentelemetry.trace import Span


class Watcher(Protocol):
    """Told of what becomes of the engine's requests of one HTTP request."""

    def see(self, index: int, event: Event) -> None:
        """index: of the choice over all prompts; 0 of terminal events."""
        ...

    def leave(self) -> None:
        """Nothing more comes; what has not ended is aborted. May be told more than once."""
        ...


@dataclass(slots=True)
class Account:
    """span: of its trace, where there is one."""

    request_id: str
    path: str = ""
    span: Span | None = None
    num_prompt_tokens: int = 0
    _drawn: dict[str, int] = field(default_factory=dict)  # of each of the engine's requests

    @property
    def num_completion_tokens(self) -> int:
        return sum(self._drawn.values())

    def admit(self, requests: Sequence[Request]) -> None:
        self.num_prompt_tokens += sum(len(request.prompt_token_ids) for request in requests)
        self._drawn |= dict.fromkeys((request.request_id for request in requests), 0)

    def see(self, index: int, event: Event) -> None:
        match event:
            case Delta():
                self._drawn[event.request_id] += len(event.tokens)
            case Finished():  # of what was drawn, not all may have been told
                self._drawn[event.request_id] = event.num_completion_tokens

    def leave(self) -> None:
        pass


current: ContextVar[Account | None] = ContextVar("account", default=None)
"""Of the HTTP request that is being answered here."""
