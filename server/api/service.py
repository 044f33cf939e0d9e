"""Service: holds what the routes work with, once there is an engine."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated

from fastapi import Depends, FastAPI
from starlette.requests import Request as HttpRequest

from trimtab.guidance.text.prompt_form import Form, mismatch
from trimtab.server.api.config import ApiConfig
from trimtab.server.api.errors import NotReadyError
from trimtab.server.api.generation import EngineClient, Generation, Usage
from trimtab.server.api.metrics import Metrics
from trimtab.server.api.models.profiles import Body, find_model, steered
from trimtab.server.api.protocol import GuidanceFields
from trimtab.server.api.readings.reasoning import ReasoningTags
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
        self.meet("chat" if can_chat else "text", self._rows)

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
    """info: the engine's, as it was when it got ready. config: resolved. head_rows: to be told what heads are
    used on. call_format: how the model calls tools, where that is known. reasoning: the tags that it thinks
    between, if it does. model_ids: see profiles."""

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

    @property
    def can_chat(self) -> bool:
        """Whether there is a chat template."""
        return bool(self.tokenizer.chat_template)

    def generation(
        self, http: HttpRequest, requests: Sequence[Request], before: Usage | None = None
    ) -> Generation:
        """One that ends with the HTTP request at the latest. Takes and raises what Generation does."""
        timeout = self.config.access.request_timeout
        generation = Generation(self.engine, requests, self.metrics, timeout, before)
        http.state.begun.append(generation)
        return generation

    def check_model(self, asked: str | None) -> None:
        """Raises ModelNotFoundError for any other than the one served, and its profiles."""
        if asked is not None:
            find_model(asked, self.model_ids)

    def steered(self, body: Body) -> Body:
        """The body with the guidance of its profile, if it asks for one. Raises like check_model."""
        return steered(body, self.model_ids)


def why_not_ready(app: FastAPI) -> str | None:
    """None when requests can be served."""
    service: Service | None = app.state.service
    status = "starting" if service is None else service.engine.status
    return UNAVAILABLE.get(status)


def stats_of(app: FastAPI) -> EngineStats | None:
    """None while there is no engine."""
    service: Service | None = app.state.service
    return None if service is None else service.engine.stats


def ready_service(request: HttpRequest) -> Service:
    """The dependency of every /v1 route. Raises NotReadyError unless the engine takes requests."""
    reason = why_not_ready(request.app)
    if reason is not None:
        raise NotReadyError(reason)
    service: Service = request.app.state.service
    return service


ReadyService = Annotated[Service, Depends(ready_service)]
