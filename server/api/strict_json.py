"""Strict JSON: reads a request's body, of limited size, no key twice, no integer without bounds."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Coroutine
from typing import Any

from fastapi.routing import APIRoute
from starlette.requests import Request
from starlette.responses import Response

from trimtab.server.api.errors import BodyTooLargeError
from trimtab.server.engine.request import InvalidRequestError

MAX_BODY_MIB = 64
MAX_DIGITS = 40  # of an integer; Python itself reads 4300, in quadratic time


class StrictJsonRoute(APIRoute):
    """Reads the body before FastAPI does, which then finds it read."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        handle = super().get_route_handler()

        async def handle_strictly(request: Request) -> Response:
            strict = _StrictRequest(request.scope, request.receive)
            with contextlib.suppress(json.JSONDecodeError):  # FastAPI meets it again, and tells
                await strict.json()
            return await handle(strict)

        return handle_strictly


class _StrictRequest(Request):
    async def body(self) -> bytes:
        """Raises BodyTooLargeError."""
        if not hasattr(self, "_body"):
            body = bytearray()
            async for chunk in self.stream():
                body += chunk
                if len(body) > MAX_BODY_MIB * 2**20:
                    raise BodyTooLargeError(f"the body has more than {MAX_BODY_MIB} MiB; send less at once")
            self._body = bytes(body)
        return self._body

    async def json(self) -> Any:
        """None for an empty body. Raises json.JSONDecodeError, and InvalidRequestError like `parse`."""
        if not hasattr(self, "_json"):
            body = await self.body()
            self._json = parse(body) if body else None
        return self._json


def parse(body: bytes) -> Any:
    """The body's JSON. NaN and infinity are read, for whoever knows the field to refuse; so is an integer of
    more than MAX_DIGITS digits, as one that is beyond every limit.

    Raises json.JSONDecodeError, and InvalidRequestError for an object with a key twice, for nesting too deep,
    and for what is not UTF-8.
    """
    repeated: list[tuple[dict[str, Any], str]] = []

    def build(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        built = dict(pairs)
        if len(built) < len(pairs):
            repeated.append((built, _first_repeated([key for key, _ in pairs])))
        return built

    try:
        tree = json.loads(body, object_pairs_hook=build, parse_int=_bounded)
    except UnicodeDecodeError as error:
        raise InvalidRequestError("the body is not valid JSON: it is not UTF-8 text") from error
    except RecursionError as error:
        raise InvalidRequestError("the body is not valid JSON: it is nested too deeply") from error
    if repeated:
        built, key = repeated[0]
        path = f"{_path_to(built, tree)}.{key}".removeprefix(".")
        raise InvalidRequestError("is given twice; give it once", path)
    return tree


def _bounded(digits: str) -> int:
    if len(digits) <= MAX_DIGITS:
        return int(digits)
    return -(10**MAX_DIGITS) if digits.startswith("-") else 10**MAX_DIGITS


def _first_repeated(keys: list[str]) -> str:
    seen: set[str] = set()
    return next(key for key in keys if key in seen or seen.add(key))  # type: ignore[func-returns-value]


def _path_to(wanted: object, tree: object) -> str:
    """Like messages[0].content; empty for the tree itself."""
    pending: list[tuple[object, str]] = [(tree, "")]
    while pending:
        node, path = pending.pop()
        if node is wanted:
            return path
        if isinstance(node, dict):
            pending.extend((child, f"{path}.{key}") for key, child in node.items())
        elif isinstance(node, list):
            pending.extend((child, f"{path}[{i}]") for i, child in enumerate(node))
    return ""  # it was itself dropped, for a key above it that was given twice
