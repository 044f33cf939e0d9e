"""Errors over HTTP: map every exception to OpenAI's error shape, in one place."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

from fastapi import FastAPI
from fastapi.exceptions import RequestValidationError
from fastapi.routing import APIRoute
from pydantic import BaseModel
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response

from trimtab.server.engine.request import (
    ContextLengthError,
    EngineUnavailableError,
    InvalidRequestError,
    QueueFullError,
)

logger = logging.getLogger(__name__)


class ModelNotFoundError(Exception):
    """The request asks for a model that this server does not serve."""

    param = "model"


class NotReadyError(Exception):
    """The engine is starting, stopping, or has died."""


class EngineFailedError(Exception):
    """The engine ended a request that it had accepted without finishing it. The message may be told."""


class ShuttingDownError(EngineFailedError):
    """It did so because the server was told to stop."""


class QueueTimeoutError(EngineFailedError):
    """The request has waited longer than requests may, and not begun."""


class NoAdminsError(Exception):
    """A request that only admins may make, to a server that has none."""


class NotAdminError(Exception):
    """The same of somebody else, where there are admins."""


class HeadConflictError(Exception):
    """A head that is to be loaded is there, or one that is to go is needed."""

    param = "name"


class HeadNotFoundError(Exception):
    """A head that is to go is not there."""

    param = "name"


class BodyTooLargeError(Exception):
    """The request's body has more bytes than are read."""


class SlowBodyError(Exception):
    """The request's body did not arrive in time."""


class RequestTimeoutError(EngineFailedError):
    """The request took longer than requests may."""


def too_slow(seconds: float) -> RequestTimeoutError:
    """seconds: that a request may take."""
    return RequestTimeoutError(f"the request took longer than the {seconds:g} seconds it may")


@dataclass(frozen=True, slots=True)
class ApiError:
    """status: HTTP. param: the request's field at fault, in the form `messages[0].role`."""

    status: int
    message: str
    type: str
    param: str | None = None
    code: str | None = None

    @property
    def body(self) -> dict[str, dict[str, str | None]]:
        """OpenAI's error object."""
        fields = {"message": self.message, "type": self.type, "param": self.param, "code": self.code}
        return {"error": {name: text and _writable(text) for name, text in fields.items()}}


class ErrorFields(BaseModel):
    """param: the request's field at fault. code: a word for programs."""

    message: str
    type: str
    param: str | None
    code: str | None


class ErrorReply(BaseModel):
    """OpenAI's shape of errors, in which every error is told."""

    error: ErrorFields


def _error(description: str) -> dict[str, Any]:
    return {"model": ErrorReply, "description": description}


ERROR_REPLIES: dict[int | str, dict[str, Any]] = {
    400: _error("A field is wrong, unknown or not supported; `param` names it."),
    404: _error("The model is not served here."),
    413: _error("The body is too large."),
    429: _error("Too much is under way, or asked by one key; with `Retry-After`."),
    500: _error("The engine could not go on with this request."),
    503: _error("The model is loading, or the server stops; with `Retry-After`."),
    "default": _error("Any other error."),
}
"""What a route answers beside its reply, for the OpenAPI schema."""


KINDS: Mapping[type[Exception], tuple[int, str, str | None]] = {
    ContextLengthError: (400, "invalid_request_error", "context_length_exceeded"),
    InvalidRequestError: (400, "invalid_request_error", None),
    ModelNotFoundError: (404, "invalid_request_error", "model_not_found"),
    NoAdminsError: (404, "invalid_request_error", "no_admins"),
    NotAdminError: (403, "permission_error", "admins_only"),
    HeadConflictError: (409, "invalid_request_error", "head_in_use"),
    HeadNotFoundError: (404, "invalid_request_error", "head_not_found"),
    BodyTooLargeError: (413, "invalid_request_error", "body_too_large"),
    SlowBodyError: (408, "invalid_request_error", "body_timeout"),
    QueueFullError: (429, "rate_limit_error", "queue_full"),
    RequestTimeoutError: (504, "server_error", "request_timeout"),
    NotReadyError: (503, "server_error", "not_ready"),
    EngineUnavailableError: (503, "server_error", "not_ready"),
    ShuttingDownError: (503, "server_error", "shutting_down"),
    QueueTimeoutError: (503, "server_error", "queue_timeout"),
    EngineFailedError: (500, "server_error", "engine_failed"),
}
"""Our exceptions: HTTP status, OpenAI's type and code. The first that fits counts."""


MAX_CHARACTERS = 500
RETRY_LATER = {"Retry-After": "5"}
HEADERS = {408: {"Connection": "close"}, 429: RETRY_LATER, 503: RETRY_LATER}
"""Of answers with these statuses."""


def describe(error: Exception) -> ApiError:
    """What the client is told about an exception. What we did not foresee is told without detail."""
    if isinstance(error, RequestValidationError):
        return _invalid_body(error.errors())
    if isinstance(error, HTTPException):
        return ApiError(error.status_code, str(error.detail), "invalid_request_error")
    for kind, (status, name, code) in KINDS.items():
        if isinstance(error, kind):
            return ApiError(status, str(error), name, getattr(error, "param", None), code)
    return ApiError(500, "internal error; the server's log has the details", "server_error")


@contextmanager
def naming(named: Callable[[str], str | None]) -> Iterator[None]:
    """Within, what the engine refuses is told by the names that its fields have in this kind of body.

    named: None for those that are the same.
    """
    try:
        yield
    except InvalidRequestError as error:
        if error.param is None or (name := named(error.param)) is None:
            raise
        raise type(error)(error.problem, name) from error


def install_error_handlers(app: FastAPI) -> None:
    """Makes every error of the application answer in OpenAI's shape."""
    for kind in (*KINDS, RequestValidationError, HTTPException, Exception):
        app.add_exception_handler(kind, _respond)
    app.add_exception_handler(ClientDisconnect, _nobody_listens)


async def _respond(request: Request, error: Exception) -> Response:
    """Logs the engine's failures; what we did not foresee is raised on by Starlette and logged there."""
    described = describe(error)
    if isinstance(error, HTTPException) and error.status_code in (404, 405):
        described = replace(described, message=_what_exists(request), code=_NO_ROUTE[error.status_code])
    if isinstance(error, EngineFailedError):
        logger.error("%s: %s", request.url.path, error)
    headers = HEADERS.get(described.status, getattr(error, "headers", None))
    return JSONResponse(described.body, described.status, headers=headers)


_NO_ROUTE = {404: "route_not_found", 405: "method_not_allowed"}
_MAX_PATH = 100  # characters of it that are said again


def _what_exists(request: Request) -> str:
    """Method and path that were asked for, as they were sent, and what there is at that path, or at all."""
    routes = [route for route in request.app.state.routes if isinstance(route, APIRoute)]
    here = [route for route in routes if route.path_regex.match(request.url.path)]
    names = ", ".join(f"{'/'.join(sorted(route.methods or ()))} {route.path}" for route in here or routes)
    asked = request.scope.get("raw_path", b"").decode("latin-1")[:_MAX_PATH]
    return f"{request.method} {asked}: no such route; there is {names}"


async def _nobody_listens(request: Request, error: Exception) -> Response:
    return Response(status_code=499)  # nginx's "client closed request", for access logs alone


def _writable(text: str) -> str:
    """Errors quote what was sent, which may be of any length and hold what UTF-8 cannot write."""
    cut = text if len(text) <= MAX_CHARACTERS else f"{text[: MAX_CHARACTERS - 1]}…"
    return cut.encode(errors="backslashreplace").decode()


_PLAIN_WORDS = {"missing": "is required"}


def _invalid_body(errors: Sequence[Mapping[str, Any]]) -> ApiError:
    """Of pydantic's errors, the first."""
    error = errors[0]
    cause = error.get("ctx", {}).get("error")
    if error["type"] == "json_invalid":
        message, path = f"the body is not valid JSON: {cause}", None
    elif (path := _field(error["loc"][1:], cause)) is None:
        message = "the body must be a JSON object sent as application/json"
    else:
        message = f"{path}: {_problem(error, cause)}"
    return ApiError(400, message, "invalid_request_error", path)


def invalid_fields(errors: Sequence[Mapping[str, Any]], name: str) -> str | None:
    """The same of an object called `name` by itself; None where it is no object."""
    error = errors[0]
    cause = error.get("ctx", {}).get("error")
    path = _field(error["loc"], cause)
    return None if path is None else f"{name}.{path}: {_problem(error, cause)}"


def _problem(error: Mapping[str, Any], cause: object) -> str:
    problem = cause.problem if isinstance(cause, InvalidRequestError) else cause
    reason = problem or error["msg"][:1].lower() + error["msg"][1:]
    return _PLAIN_WORDS.get(error["type"], str(reason))


def _field(location: Sequence[int | str], cause: object) -> str | None:
    """("messages", 0, "role") -> "messages[0].role"; None for the body itself."""
    path = "".join(f"[{step}]" if isinstance(step, int) else f".{step}" for step in location)
    if isinstance(cause, InvalidRequestError) and cause.param is not None:
        path += f".{cause.param}"
    return path.removeprefix(".") or None
