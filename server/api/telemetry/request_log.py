"""Request log: gives each request its id, and logs a line of it when it has been answered."""

from __future__ import annotations

import logging
import time
import uuid
from collections.abc import Sequence
from typing import Any

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from trimtab.server.api.access.gate import ANYONE, PROBES
from trimtab.server.api.telemetry.account import Account, current
from trimtab.server.api.telemetry.spans import Tracing
from trimtab.server.api.tokens import Tokenizer
from trimtab.server.engine.request import Delta, Event, Request

logger = logging.getLogger(__name__)
MAX_REQUEST_ID = 128  # characters
MAX_PATH = 500
NOT_LOGGED = (*PROBES, "/metrics")
"""Paths that are asked for all the time, and answer 200 or 503."""


class RequestLog:
    """ASGI middleware. Every answer has the `X-Request-Id` of its request, or one of its own where there is
    none, or none that can be written: of printable ASCII, not too long. It stands in the scope's state as
    `request_id`, and in every line that is logged meanwhile.

    The last line has method, path without its query, status (499 where the client left before there was
    one), seconds, the name of the key, and tokens; nothing else of what was sent.
    """

    def __init__(self, app: ASGIApp, tracing: Tracing | None = None) -> None:
        self._app, self._tracing = app, tracing

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        began, status = time.monotonic(), 499
        account = Account(_id_of(scope), scope["path"])
        scope.setdefault("state", {})["request_id"] = account.request_id
        current.set(account)  # and left so: what becomes of an error is logged outside
        if self._tracing is not None and scope["path"] not in NOT_LOGGED:
            account.span = self._tracing.begin(scope, account.request_id)

        async def watch(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                MutableHeaders(scope=message)["X-Request-Id"] = account.request_id
            await send(message)

        error: BaseException | None = None
        try:
            await self._app(scope, receive, watch)
        except BaseException as raised:
            status, error = (500 if status == 499 else status), raised
            raise
        finally:
            if scope["path"] not in NOT_LOGGED or status not in (200, 503):
                fields = _fields(scope, account, status, time.monotonic() - began)
                logger.info("answered", extra={"fields": fields})
            if self._tracing is not None and account.span is not None:
                self._tracing.end(account.span, scope, status, error)


def _id_of(scope: Scope) -> str:
    sent = Headers(scope=scope).get("x-request-id", "")
    is_fit = 0 < len(sent) <= MAX_REQUEST_ID and sent.isascii() and sent.isprintable()
    return sent if is_fit else f"req-{uuid.uuid4().hex}"


def _fields(scope: Scope, account: Account, status: int, seconds: float) -> dict[str, Any]:
    fields = {
        "method": scope["method"][:MAX_REQUEST_ID],
        "path": scope["path"][:MAX_PATH],
        "status": status,
        "duration": round(seconds, 6),
    }
    if (key := scope["state"].get("key_name", ANYONE)) != ANYONE:
        fields["key"] = key
    if account.num_prompt_tokens:
        fields |= {
            "prompt_tokens": account.num_prompt_tokens,
            "completion_tokens": account.num_completion_tokens,
        }
    return fields


class PromptLog:
    """Logs what was asked and said: only for who asks for it. A watcher."""

    def __init__(self, tokenizer: Tokenizer, requests: Sequence[Request]) -> None:
        self._said: dict[int, list[str]] = {}
        for request in requests:
            prompt = tokenizer.decode([*request.prompt_token_ids, *request.given])
            logger.info("prompt", extra={"fields": {"prompt": prompt}})

    def see(self, index: int, event: Event) -> None:
        if isinstance(event, Delta):
            self._said.setdefault(index, []).append(event.text)

    def leave(self) -> None:
        for index, texts in sorted(self._said.items()):
            logger.info("reply", extra={"fields": {"choice": index, "reply": "".join(texts)}})
        self._said.clear()
