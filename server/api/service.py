"""What the routes work with, once there is an engine."""

from __future__ import annotations

from dataclasses import dataclass

from fastapi import FastAPI
from starlette.requests import Request

from trimtab.server.api.config import ApiConfig
from trimtab.server.api.engine_client import EngineClient
from trimtab.server.api.errors import ModelNotFoundError, NotReadyError
from trimtab.server.api.head_rows import HeadRows
from trimtab.server.api.tokenizer import Tokenizer
from trimtab.server.api.tokens import TokenText
from trimtab.server.engine.info import EngineInfo

UNAVAILABLE = {
    "starting": "the model is loading; try again in a moment",
    "stopping": "the server is shutting down",
    "dead": "the engine has died; see the server's log and restart it",
}


@dataclass(frozen=True, slots=True)
class Service:
    """info: the engine's, as it was when it got ready. config: resolved. head_rows: to be told what heads are
    used on."""

    engine: EngineClient
    info: EngineInfo
    tokenizer: Tokenizer
    token_text: TokenText
    config: ApiConfig
    head_rows: HeadRows

    @property
    def can_chat(self) -> bool:
        """Whether there is a chat template."""
        return bool(self.tokenizer.chat_template)

    def check_model(self, asked: str | None) -> None:
        """Raises ModelNotFoundError for any other model than the one served."""
        served = self.info.model_name
        if asked is not None and asked != served:
            raise ModelNotFoundError(f"model: {asked!r} is not served here; this server has {served!r}")


def why_not_ready(app: FastAPI) -> str | None:
    """None when requests can be served."""
    service: Service | None = app.state.service
    status = "starting" if service is None else service.engine.status
    return UNAVAILABLE.get(status)


def ready_service(request: Request) -> Service:
    """The dependency of every /v1 route. Raises NotReadyError unless the engine takes requests."""
    reason = why_not_ready(request.app)
    if reason is not None:
        raise NotReadyError(reason)
    service: Service = request.app.state.service
    return service
