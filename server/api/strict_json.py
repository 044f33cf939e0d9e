"""Strict JSON: reads a request's body, of limited size, no key twice, no integer without bounds."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Callable, Coroutine
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

from fastapi.routing import APIRoute
from starlette.requests import Request
from starlette.responses import Response

from trimtab.server.api.errors import BodyTooLargeError
from trimtab.server.engine.request import InvalidRequestError, QueueFullError

MAX_BODY_MIB = 16
MAX_DROPPED_MIB, LONGEST_LENGTH = 128, 18  # of one that is longer, and the digits of its length
MAX_BODIES_MIB = 512  # of all that are not parsed yet, small ones apart
MAX_VALUES, MAX_OBJECTS = 2**20, 2**17  # of a body: values; and lists, objects and their keys
SMALL = 2**16  # bytes, which take less time to parse than a thread to wake up
MAX_DIGITS = 40  # of an integer; Python itself reads 4300, in quadratic time


@dataclass(slots=True)
class BodyReader:
    """What the bodies of all requests share: how many bytes of them may be there at a time, and threads that
    parse the long ones beside everything else."""

    num_bytes: int = 0
    threads: ThreadPoolExecutor = field(default_factory=lambda: ThreadPoolExecutor(1, "trimtab-parse"))

    async def read(self, request: Request) -> bytes:
        """The whole body, which is counted until `parse`. Raises BodyTooLargeError, and QueueFullError where
        it is too much beside others."""
        body, counted = bytearray(), 0
        chunks = request.stream()
        try:
            async for chunk in chunks:
                body += chunk
                if len(body) > MAX_BODY_MIB * 2**20:
                    body.clear()
                    await _drop(request, chunks)
                    raise BodyTooLargeError(f"the body has more than {MAX_BODY_MIB} MiB; send less at once")
                if len(body) > SMALL:
                    self.num_bytes += len(body) - counted
                    counted = len(body)
                if counted and self.num_bytes > MAX_BODIES_MIB * 2**20:
                    raise QueueFullError("too many long bodies are being read; try again in a moment")
        except BaseException:
            self.num_bytes -= counted
            raise
        return bytes(body)

    async def parse(self, body: bytes) -> Any:
        """The body's JSON. Raises like `parse`."""
        if len(body) <= SMALL:
            return parse(body)
        try:
            return await asyncio.get_running_loop().run_in_executor(self.threads, parse, body)
        finally:
            self.num_bytes -= len(body)


async def _drop(request: Request, chunks: AsyncIterator[bytes]) -> None:
    """The rest of a body of known, moderate length: most clients read no answer before they have sent it."""
    length = request.headers.get("content-length", "")
    if length.isdecimal() and int(length[:LONGEST_LENGTH]) <= MAX_DROPPED_MIB * 2**20:
        async for _ in chunks:
            pass


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
    """Its body is read and parsed once, whatever comes of it."""

    async def body(self) -> bytes:
        """What FastAPI asks for to know whether there is one; only its first byte is kept. Raises like
        BodyReader.read."""
        if not hasattr(self, "_body"):
            reader: BodyReader = self.app.state.bodies
            body = await reader.read(self)
            self._body = body[:1]
            self._error: Exception | None = None
            try:
                self._json = await reader.parse(body) if body else None
            except (json.JSONDecodeError, InvalidRequestError, BodyTooLargeError) as error:
                self._error = error
        return self._body

    async def json(self) -> Any:
        """None for an empty body. Raises json.JSONDecodeError, and InvalidRequestError like `parse`."""
        await self.body()
        if self._error is not None:
            raise self._error
        return self._json


def parse(body: bytes) -> Any:
    """The body's JSON. NaN and infinity are read, for whoever knows the field to refuse; so is an integer of
    more than MAX_DIGITS digits, as one that is beyond every limit.

    Raises json.JSONDecodeError, InvalidRequestError for an object with a key twice, for nesting too deep,
    and for what is not UTF-8, and BodyTooLargeError for too many values: they take a hundred times the room,
    and time that no other thread has.
    """
    if len(body) > SMALL:
        _check_count(body)
    repeated: list[tuple[dict[str, Any], str]] = []

    def build(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        built = dict(pairs)
        if len(built) < len(pairs):
            repeated.append((built, _first_repeated([key for key, _ in pairs])))
        return built

    try:
        # Hooks in Python let other threads run meanwhile.
        tree = json.loads(body, object_pairs_hook=build, parse_int=_bounded, parse_float=_number)
    except UnicodeDecodeError as error:
        raise InvalidRequestError("the body is not valid JSON: it is not UTF-8 text") from error
    except RecursionError as error:
        raise InvalidRequestError("the body is not valid JSON: it is nested too deeply") from error
    if repeated:
        built, key = repeated[0]
        path = f"{_path_to(built, tree)}.{key}".removeprefix(".")
        raise InvalidRequestError("is given twice; give it once", path)
    return tree


def _check_count(body: bytes) -> None:
    """Of what stands outside of strings; piece by piece, so that other threads run meanwhile."""
    num_values = num_objects = is_inside = 0
    carried = b""
    for start in range(0, len(body), 2**20):
        piece = carried + body[start : start + 2**20]
        carried = b"\\" if (len(piece) - len(piece.rstrip(b"\\"))) % 2 else b""  # escapes what follows
        if b"\\" in piece:
            piece = piece[: len(piece) - len(carried)].replace(b"\\\\", b"").replace(b'\\"', b"")
        texts = piece.split(b'"')
        outside = b"".join(texts[is_inside::2])
        is_inside ^= (len(texts) - 1) % 2
        num_values += outside.count(b",")
        num_objects += sum(map(outside.count, (b"[", b"{", b":")))
        if num_values > MAX_VALUES or num_objects > MAX_OBJECTS:
            what = f"more than {MAX_VALUES} values, or than {MAX_OBJECTS} lists and keys"
            raise BodyTooLargeError(f"the body has {what}; send less at once")


def _number(text: str) -> float:
    return float(text)


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
