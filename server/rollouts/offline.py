"""Run a list of requests through an engine to the end, without a server."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field

from tqdm.auto import tqdm

from trimtab.server.engine.engine import Engine
from trimtab.server.engine.request import (
    Aborted,
    ChoiceDone,
    Delta,
    Event,
    Failed,
    FinishReason,
    GuidanceSummary,
    Request,
    TokenRecord,
)


class GenerationError(RuntimeError):
    """A request ended with an error."""


@dataclass(slots=True)
class CompletedChoice:
    text: str = ""
    tokens: list[TokenRecord] = field(default_factory=list)
    finish_reason: FinishReason | None = None
    summary: GuidanceSummary | None = None

    @property
    def token_ids(self) -> list[int]:
        return [token.token_id for token in self.tokens]


@dataclass(frozen=True, slots=True)
class Completion:
    request: Request
    choices: tuple[CompletedChoice, ...]

    def take(self, event: Event) -> None:
        if isinstance(event, Delta):
            choice = self.choices[event.index]
            choice.text += event.text
            choice.tokens.extend(event.tokens)
        elif isinstance(event, ChoiceDone):
            choice = self.choices[event.index]
            choice.finish_reason, choice.summary = event.finish_reason, event.summary
        elif isinstance(event, Failed | Aborted):
            raise GenerationError(f"request {event.request_id}: {getattr(event, 'message', 'aborted')}")


def generate(
    engine: Engine, requests: Iterable[Request], progress: str | None = None, bar: tqdm | None = None
) -> list[Completion]:
    """Complete all requests, batched. progress: the label of a progress bar, or None for none; bar: one that
    goes on over several calls, in its place.

    Raises InvalidRequestError before any work, GenerationError when a request ends with an error.
    """
    requests = list(requests)
    for request in requests:
        engine.check(request)
    completions = {
        r.request_id: Completion(r, tuple(CompletedChoice() for _ in range(r.sampling.n))) for r in requests
    }
    for request in requests:
        engine.add(request)
    with _shown(bar, progress, sum(r.sampling.n for r in requests)) as shown:
        for event in _events(engine):
            completions[event.request_id].take(event)
            shown.update(isinstance(event, ChoiceDone))
    return list(completions.values())


def _shown(bar: tqdm | None, progress: str | None, total: int) -> AbstractContextManager[tqdm]:
    if bar is not None:
        return nullcontext(bar)
    return tqdm(total=total, desc=progress, unit="reply", disable=progress is None)


def _events(engine: Engine) -> Iterator[Event]:
    while engine.has_work:
        yield from engine.step()
