"""Streamed lines: what is written in the short way is, byte for byte, what the long way writes."""

from __future__ import annotations

import asyncio
import json
import re
import socket
from typing import Any
from urllib.parse import urlsplit

import httpx
import pytest
import uvicorn
from starlette.types import Receive, Scope, Send
from uvicorn.server import ServerState

from trimtab.server.api.access.slow import WRITE_PIECE, TimedH11Protocol, timed_protocol
from trimtab.server.api.app import create_app
from trimtab.server.api.config import ApiConfig
from trimtab.server.api.readings.reasoning import ReasoningTags
from trimtab.server.api.replies import ChatFormat, CompletionFormat, ReplyFormat
from trimtab.server.api.streaming import TextLines, data_line
from trimtab.server.api.tokens import TokenText
from trimtab.server.engine.reasoning import Tags
from trimtab.server.engine.request import Delta, TokenRecord

TEXTS = [
    *(" a", '"quoted" \\ back', "\n\r\t\x00\x1b\x7f", "data: [DONE]\n\n", "é ß 中 🙂"),
    *("\u2028\u2029\ufeff\ufffd", "%s {0} </script>", "\ud83d", "x" * 10_000),
]
FORMATS: dict[str, type[ReplyFormat]] = {"chat": ChatFormat, "completion": CompletionFormat}


def make_format(kind: str, engine: Any, **more: Any) -> ReplyFormat:
    fields = {"logprobs": False, "trace": False} | more
    return FORMATS[kind]('a "model"', TokenText(engine.tokenizer), **fields)


@pytest.mark.parametrize("more", [{}, {"usage": None}], ids=["no usage", "usage at the end"])
@pytest.mark.parametrize("kind", FORMATS)
def test_a_line_of_text_is_what_encoding_its_chunk_gives(engine, kind: str, more: dict[str, Any]):
    reply = make_format(kind, engine)
    assert reply.says_text_alone
    lines = TextLines(reply, more)
    for index in (0, 3, 0):
        for text in TEXTS:
            delta = Delta("r", index, text, (TokenRecord(65, -1.0),), (7,))
            choice = reply.delta_choice(index, delta)
            assert choice is not None
            line = lines.line(index, text)
            assert line == data_line(reply.chunk(choice, **more))
            assert line.count("\n") == 2 and json.loads(line[6:])["choices"][0]["index"] == index


def test_what_says_more_than_its_text_is_written_in_the_long_way(engine):
    tags = ReasoningTags(Tags(257, 258), {257: 7, 258: 8})
    more = [{"logprobs": True}, {"trace": True}, {"tools": object()}, {"reasoning": tags}]
    assert not any(make_format("chat", engine, **each).says_text_alone for each in more)


MESSAGES = [{"role": "user", "content": 'Tell "me"\n\té ß 🙂 \x01'}]
USAGE = {"include_usage": True}
BODIES: dict[str, tuple[str, dict[str, Any]]] = {
    "chat": ("chat/completions", {"messages": MESSAGES}),
    "several choices": ("chat/completions", {"messages": MESSAGES, "n": 2}),
    "usage": ("chat/completions", {"messages": MESSAGES, "stream_options": USAGE}),
    "usage in every chunk": (
        "chat/completions",
        {"messages": MESSAGES, "stream_options": {**USAGE, "continuous_usage_stats": True}},
    ),
    "log-probabilities": ("chat/completions", {"messages": MESSAGES, "logprobs": True, "top_logprobs": 2}),
    "trace": ("chat/completions", {"messages": MESSAGES, "guidance": {"strength": 2, "trace": True}}),
    "tools": (
        "chat/completions",
        {"messages": MESSAGES, "tools": [{"type": "function", "function": {"name": "look"}}]},
    ),
    "several prompts": ("completions", {"prompt": ["abcd", "cé🙂"], "n": 2, "stream_options": USAGE}),
    "columns": ("completions", {"prompt": "abcd", "logprobs": 1}),
    "a response": ("responses", {"input": "ab"}),
}


def normal(text: str) -> str:
    """Without what differs from request to request."""
    text = re.sub(r'"(created|created_at|completed_at)":\d+', "", text)
    return re.sub(r"(cmpl-|resp_|msg_|call_)[0-9a-f]{32}", "", text)


def head_of(url: str, version: str, body: dict[str, Any]) -> bytes:
    content = json.dumps(body).encode()
    lines = (
        f"POST {urlsplit(url).path} HTTP/{version}",
        "Host: localhost",
        f"Content-Length: {len(content)}",
    )
    return "\r\n".join((*lines, "Content-Type: application/json", "", "")).encode() + content


@pytest.fixture
def written(monkeypatch) -> list[bytes]:
    """The pieces that connections have written themselves."""
    pieces: list[bytes] = []
    write = TimedH11Protocol._write_piece

    def note(self: TimedH11Protocol, piece: bytes) -> bool:
        is_written = write(self, piece)
        pieces.extend([piece] if is_written else [])
        return is_written

    monkeypatch.setattr(TimedH11Protocol, "_write_piece", note)
    return pieces


@pytest.mark.parametrize("kind", BODIES)
def test_a_stream_is_the_same_in_the_short_and_in_the_long_way(
    make_scripted, serve, monkeypatch, written, kind: str
):
    engine = make_scripted(lambda prompt: prompt.replace("<user>", ""))
    url = serve(create_app(engine, engine.tokenizer, ApiConfig(default_head="kind")))
    path, body = BODIES[kind]
    short = httpx.post(f"{url}/v1/{path}", json={**body, "stream": True})
    assert short.status_code == 200, short.text
    assert "".join(piece.decode() for piece in written) == short.text
    for format in (ReplyFormat, ChatFormat):
        monkeypatch.setattr(format, "says_text_alone", False)
    monkeypatch.setattr(TimedH11Protocol, "_write_piece", lambda self, piece: False)
    long = httpx.post(f"{url}/v1/{path}", json={**body, "stream": True})
    assert normal(short.text) == normal(long.text)


def test_a_client_of_http_1_0_has_no_pieces_framed(engine, serve, written):
    url = serve(create_app(engine, engine.tokenizer)) + "/v1/completions"
    with socket.create_connection(("127.0.0.1", urlsplit(url).port), 5) as connection:
        connection.sendall(head_of(url, "1.0", {"prompt": "abc", "stream": True}))
        answer = b"".join(iter(lambda: connection.recv(4096), b"")).partition(b"\r\n\r\n")[2]
    assert not written
    lines = answer.decode().split("\n\n")
    assert [json.loads(line[6:])["choices"][0]["text"] for line in lines[:-2]] == ["a", "b", "c", ""]
    assert lines[-2:] == ["data: [DONE]", ""]


def test_streams_that_are_asked_for_at_once_follow_one_another(engine, serve, written):
    url = serve(create_app(engine, engine.tokenizer)) + "/v1/completions"
    asked = [{"prompt": "abc", "stream": True}, {"prompt": "xyz", "stream": True}]
    with socket.create_connection(("127.0.0.1", urlsplit(url).port), 5) as connection:
        connection.sendall(b"".join(head_of(url, "1.1", body) for body in asked))
        answer = b""
        while answer.count(b"[DONE]\n\n\r\n0\r\n\r\n") < 2:
            answer += connection.recv(4096)
    assert re.findall(r'"text":"(.)"', answer.decode()) == [*"abcxyz"]
    assert len(written) == 2 * 5


def test_nothing_is_written_past_the_server_for_who_takes_nothing_or_has_left():
    told: list[bool] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        def write() -> None:
            told.append(scope["extensions"][WRITE_PIECE](b"piece"))

        write()
        await send({"type": "http.response.start", "status": 200, "headers": []})
        write()
        protocol.pause_writing()
        write()
        protocol.resume_writing()
        write()
        if scope["path"] == "/ends":
            await send({"type": "http.response.body", "body": b"", "more_body": False})
        else:
            protocol.connection_lost(ConnectionResetError())
        write()

    class Sink(asyncio.Transport):
        is_closing = staticmethod(lambda: False)
        get_write_buffer_size = staticmethod(lambda: 1)
        set_write_buffer_limits = close = staticmethod(lambda high=0: None)
        sent = b""

        def write(self, data: Any) -> None:
            self.sent += data

    async def connect(path: str) -> None:
        nonlocal protocol
        config = uvicorn.Config(app, lifespan="off", log_config=None)
        protocol = timed_protocol(30.0)(config, ServerState(), {})
        protocol.connection_made(sink)
        protocol.data_received(head_of(f"http://localhost{path}", "1.1", {}))
        await asyncio.gather(*protocol.tasks)
        protocol.connection_lost(None)

    protocol: Any = None
    for path, end in (("/ends", b"0\r\n\r\n"), ("/is-left", b"")):
        sink = Sink()
        asyncio.run(connect(path))
        assert told == [False, True, False, True, False]
        assert sink.sent.endswith(b"\r\n\r\n" + 2 * b"5\r\npiece\r\n" + end)
        told.clear()
