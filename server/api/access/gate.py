"""Gate: lets in who has a key, a request that is said in time, and no more of a key than it may have."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Sequence
from urllib.parse import urlsplit

from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from trimtab.server.api.access.keys import Keys
from trimtab.server.api.access.rates import Rates
from trimtab.server.api.errors import ApiError, SlowBodyError, describe, too_slow

ORCHESTRATORS = ("/live", "/ready")
"""Probes that are sent to an address, whose name nobody allowed; they say one word to anybody."""
PROBES = (*ORCHESTRATORS, "/health", "/ping")
"""With those of load balancers."""
OPEN_PATHS = (*PROBES, "/metrics", "/version")
"""With what Prometheus asks for; nothing of it comes from a client."""
ADMIN_PATHS = ("/v1/load_head", "/v1/unload_head")
ANYONE = "anyone"


class Gate:
    """ASGI middleware. keys: none for a server that asks for none. admin_keys: of whom `is_admin` is true in
    the scope's state, at their own paths; they are keys nowhere else. rates: of each key; where there are
    none, of all clients together. hosts: names that a request may be sent to, `*.` before one for all below
    it; none for any. read_timeout: seconds for a request's body; request_timeout: until its answer begins,
    which then has to end by the same `deadline` in the scope's state."""

    def __init__(
        self,
        app: ASGIApp,
        keys: Keys,
        rates: Rates,
        hosts: Sequence[str],
        read_timeout: float,
        request_timeout: float | None = None,
        admin_keys: Keys | None = None,
    ) -> None:
        self._admin_keys = admin_keys or Keys()
        self._app, self._keys, self._rates, self._hosts = app, keys, rates, hosts
        self._read_timeout, self._request_timeout = read_timeout, request_timeout

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        if scope["path"] not in ORCHESTRATORS and not self._is_for_us(Request(scope).headers.get("host", "")):
            error = ApiError(421, _OTHER_HOST, "invalid_request_error", code="host_not_allowed")
            await _refuse(scope, receive, send, error, {})
            return
        if scope["path"] in OPEN_PATHS or scope["method"] == "OPTIONS":
            await self._app(scope, receive, send)
            return
        admin = self._admin_keys.find(_bearer(scope)) if scope["path"] in ADMIN_PATHS else None
        name = self._name(scope) if admin is None else f"admin {admin}"
        if name is None:
            await _refuse(
                scope,
                receive,
                send,
                ApiError(401, _NO_KEY, "authentication_error", code="invalid_api_key"),
                {"WWW-Authenticate": "Bearer"},
            )
            return
        seconds = self._rates.begin(name)
        if seconds is not None:
            error = ApiError(429, _TOO_MANY, "rate_limit_error", code="rate_limit_exceeded")
            await _refuse(scope, receive, send, error, {"Retry-After": str(math.ceil(seconds))})
            return
        scope.setdefault("state", {}).update(key_name=name, is_admin=admin is not None)
        try:
            await self._answer(scope, _timely(receive, self._read_timeout), send)
        finally:
            self._rates.end(name)

    async def _answer(self, scope: Scope, receive: Receive, send: Send) -> None:
        """In time; 504 where the answer has not begun by then."""
        seconds = self._request_timeout
        deadline = None if seconds is None else asyncio.get_running_loop().time() + seconds
        scope["state"]["deadline"] = deadline
        has_begun = False

        async def begin(message: Message) -> None:
            nonlocal has_begun
            if not has_begun:
                has_begun = True
                limit.reschedule(None)
            await send(message)

        try:
            async with asyncio.timeout_at(deadline) as limit:
                await self._app(scope, receive, begin)
        except TimeoutError:
            if has_begun:
                raise
            await _refuse(scope, receive, send, describe(too_slow(seconds or 0.0)), {})

    def _is_for_us(self, host: str) -> bool:
        if not self._hosts:
            return True
        try:
            name = urlsplit(f"//{host}").hostname or ""
        except ValueError:
            return False
        return any(
            name == allowed or (allowed.startswith("*.") and name.endswith(allowed[1:]))
            for allowed in self._hosts
        )

    def _name(self, scope: Scope) -> str | None:
        """Whose key it is; None where it is nobody's."""
        if not self._keys:
            return ANYONE
        return self._keys.find(_bearer(scope))


def _bearer(scope: Scope) -> str:
    """The key that a request came with; empty, which is nobody's, without one."""
    scheme, _, key = Request(scope).headers.get("authorization", "").partition(" ")
    return key.strip() if scheme.lower() == "bearer" else ""


_OTHER_HOST = "this server does not answer for that host; start it with --allowed-hosts NAME"
_NO_KEY = "this server wants an API key: send the header Authorization: Bearer KEY"
_TOO_MANY = "too many requests of this key; try again after the seconds that Retry-After says"


def _timely(receive: Receive, seconds: float) -> Receive:
    """Messages up to the body's end, all within so many seconds; after it a client may be silent.

    Raises SlowBodyError.
    """
    deadline = asyncio.get_running_loop().time() + seconds
    is_whole = False

    async def receive_in_time() -> Message:
        nonlocal is_whole
        if is_whole:
            return await receive()
        try:
            async with asyncio.timeout_at(deadline):
                message = await receive()
        except TimeoutError as error:
            raise SlowBodyError(f"the body did not arrive within {seconds:g} seconds") from error
        is_whole = message["type"] != "http.request" or not message.get("more_body", False)
        return message

    return receive_in_time


async def _refuse(
    scope: Scope, receive: Receive, send: Send, error: ApiError, headers: dict[str, str]
) -> None:
    await JSONResponse(error.body, error.status, headers=headers)(scope, receive, send)
