"""Service: holds what the routes work with, once there is an engine."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Annotated, get_args

from fastapi import Depends, FastAPI
from starlette.requests import Request as HttpRequest

from trimtab.guidance.text.prompt_form import Form, mismatch
from trimtab.server.api.access.gate import ANYONE
from trimtab.server.api.config import ApiConfig
from trimtab.server.api.errors import NotReadyError
from trimtab.server.api.generation import Deadline, EngineClient, Generation, Usage
from trimtab.server.api.metrics import Metrics, RequestMeter
from trimtab.server.api.models.profiles import Body, find_model, steered
from trimtab.server.api.readings.reasoning import ReasoningTags
from trimtab.server.api.schemas.guidance import GuidanceFields
from trimtab.server.api.telemetry.account import Watcher, current
from trimtab.server.api.telemetry.request_log import PromptLog
from trimtab.server.api.telemetry.spans import Tracing
from trimtab.server.api.tokens import Encoding, Tokenizer, TokenText
from trimtab.server.api.tools.formats import CallFormat
from trimtab.server.engine.request import EngineInfo, EngineStats, HeadInfo, Request

logger = logging.getLogger(__name__)


class HeadRows:
    """Chats are what a model with a template is for, so that a head which was trained on texts is told of at
    once; one that was trained on chats only when a text is completed with it."""

    def __init__(self, heads: Iterable[HeadInfo], *, can_chat: bool) -> None:
        self._rows = {head.name: head.rows for head in heads}
        self._told: set[tuple[str, Form]] = set()
        self._usual: Form = "chat" if can_chat else "text"
        self.meet(self._usual, self._rows)

    def put(self, head: HeadInfo) -> None:
        """A further one."""
        self._rows[head.name] = head.rows
        self._told -= {(head.name, form) for form in get_args(Form)}
        self.meet(self._usual, (head.name,))

    def meet(self, form: Form, names: Iterable[str]) -> None:
        """These heads are used on prompts of this form."""
        for name in names:
            problem = mismatch(name, self._rows.get(name), form)
            if problem is not None and (name, form) not in self._told:
                self._told.add((name, form))
                logger.warning("%s", problem)


UNAVAILABLE = {
    "starting": "the model is loading; try again in a moment",
    "stopping": "the server is shutting down",
    "dead": "the engine has died; see the server's log and restart it",
}


@dataclass(frozen=True, slots=True)
class Service:
    """info: the engine's, as it was when it got ready, or heads were changed last. config: resolved.
    head_rows: to be told what heads are used on. call_format: how the model calls tools, where that is known.
    reasoning: the tags that it thinks between, if it does. model_ids: see profiles."""

    engine: EngineClient
    info: EngineInfo
    tokenizer: Tokenizer
    token_text: TokenText
    config: ApiConfig
    head_rows: HeadRows
    metrics: Metrics
    call_format: CallFormat | None
    reasoning: ReasoningTags | None
    model_ids: Mapping[str, GuidanceFields | None]
    encoding: Encoding
    tracing: Tracing | None = None

    @property
    def can_chat(self) -> bool:
        """Whether there is a chat template."""
        return bool(self.tokenizer.chat_template)

    async def generation(
        self,
        http: HttpRequest,
        requests: Sequence[Request],
        before: Usage | None = None,
        cache_salt: str | None = None,
    ) -> Generation:
        """Of one HTTP request, whose sender's the requests are: of these the first may not wait too long, and
        the others wait for that. It ends with the HTTP request at the latest. Raises what Generation.start
        does."""
        access = self.config.access
        tenant, salt = sender(http), self.salt(http, cache_salt)
        waits = (access.queue_timeout, *[None] * len(requests))
        theirs = [
            replace(request, tenant=tenant, salt=salt, max_wait=wait)
            for request, wait in zip(requests, waits, strict=False)
        ]
        at: float | None = getattr(http.state, "deadline", None)
        deadline = None if at is None else Deadline(at, access.request_timeout or 0.0)
        generation = await Generation.start(self.engine, theirs, self._watch, deadline, before)
        http.state.begun.append(generation)
        num_replies = sum(request.sampling.n for request in requests)
        self.metrics.admitted.labels(model_name=self.metrics.model).inc(num_replies)
        return generation

    def salt(self, http: HttpRequest, asked: str | None = None) -> str:
        """Only requests of the same may find what others have left in caches: those of one key, unless all
        share, and of one `cache_salt`."""
        name = ANYONE if self.config.access.share_prefixes else sender(http)
        return "" if name == ANYONE and asked is None else f"{name}\0{asked or ''}"

    def _watch(self, requests: Sequence[Request]) -> list[Watcher]:
        watchers: list[Watcher] = [RequestMeter(self.metrics, requests)]
        account = current.get()
        if account is not None:
            account.admit(requests)
            watchers.append(account)
            if self.tracing is not None and account.span is not None:
                watchers.append(
                    self.tracing.watch(account.span, account.path, requests, self.info.model_name)
                )
        if self.config.telemetry.log_prompts:
            watchers.append(PromptLog(self.tokenizer, requests))
        return watchers

    def check_model(self, asked: str | None) -> None:
        """Raises ModelNotFoundError for any other than the one served, and its profiles."""
        if asked is not None:
            find_model(asked, self.model_ids)

    def steered(self, body: Body) -> Body:
        """The body with the guidance of its profile, if it asks for one. Raises like check_model."""
        return steered(body, self.model_ids)


def sender(http: HttpRequest) -> str:
    """The name of the key that a request came with."""
    return str(getattr(http.state, "key_name", ANYONE))


def why_not_ready(app: FastAPI) -> str | None:
    """None when requests can be served."""
    service: Service | None = app.state.service
    status = "starting" if service is None else service.engine.status
    return UNAVAILABLE.get(status)


def why_dead(app: FastAPI) -> str | None:
    """None unless the engine has died, which only a new process mends."""
    service: Service | None = app.state.service
    return UNAVAILABLE["dead"] if service is not None and service.engine.status == "dead" else None


def stats_of(app: FastAPI) -> EngineStats | None:
    """None while there is no engine."""
    service: Service | None = app.state.service
    return None if service is None else service.engine.stats


async def ready_service(request: HttpRequest) -> Service:  # async: else FastAPI calls it in a thread
    """The dependency of every /v1 route. Raises NotReadyError unless the engine takes requests."""
    reason = why_not_ready(request.app)
    if reason is not None:
        raise NotReadyError(reason)
    service: Service = request.app.state.service
    return service


ReadyService = Annotated[Service, Depends(ready_service)]
