"""Log lines of requests: one for each, in either format, which nothing that is sent can break, forge, or fill
with what was asked and said."""

from __future__ import annotations

import io
import json
import logging
import re
import socket
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import httpx
import pytest

from trimtab.server.api.access.config import AccessConfig
from trimtab.server.api.app import create_app
from trimtab.server.api.config import ApiConfig
from trimtab.server.api.telemetry.config import TelemetryConfig
from trimtab.server.api.telemetry.log_lines import set_up_log

pytestmark = pytest.mark.anyio
CHAT, COMPLETIONS, RESPONSES = "/v1/chat/completions", "/v1/completions", "/v1/responses"
FORMATS = ("text", "json")
JSON = {"Content-Type": "application/json"}
TEXT_LINE = re.compile(
    r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z [A-Z]+( [a-z_]+=(\"([^\"\\]|\\.)*\"|\S+))* [\w.]+: "
)
SECRET = "xyzzyq"
Lines = Callable[[], list[str]]


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture
def log() -> Iterator[Callable[..., Lines]]:
    """Sets the log up as a server does; what it returns gives the lines since, of which each is whole."""
    root = logging.getLogger()
    kept = root.handlers[:], root.level, logging.raiseExceptions, warnings.showwarning
    level = logging.getLogger("trimtab").level

    def start(log_format: str, log_prompts: bool = False) -> Lines:
        stream = io.StringIO()
        set_up_log(TelemetryConfig(log_format, log_prompts), stream)  # type: ignore[arg-type]

        def lines() -> list[str]:
            text = stream.getvalue()
            assert text == "" or text.endswith("\n")
            found = text.split("\n")[:-1]
            for line in found:
                assert line.isprintable(), line
                if log_format == "json":
                    assert isinstance(json.loads(line), dict)
                    assert re.search(r"\\ud[89ab]", line.replace("\\\\", "")) is None
                else:
                    assert TEXT_LINE.match(line) or line.startswith("  | "), line
            return found

        return lines

    yield start
    for handler in root.handlers[:]:
        root.removeHandler(handler)
    root.handlers, root.level = kept[0], kept[1]
    root.setLevel(kept[1])
    logging.raiseExceptions, warnings.showwarning = kept[2:]
    logging.getLogger("trimtab").setLevel(level)


def answered(lines: list[str]) -> list[dict[str, Any]]:
    return [told for line in lines if (told := json.loads(line))["message"] == "answered"]


async def test_each_request_has_a_line_with_what_is_known_of_it(log, engine, make_client):
    lines = log("json")
    async with make_client(engine) as client:
        body = {"prompt": "abc", "max_tokens": 2}
        await client.post(COMPLETIONS, json=body, headers={"X-Request-Id": "mine"})
        await client.post(COMPLETIONS, json=body | {"stream": True})
        await client.post(COMPLETIONS, json=body | {"temperature": -1})
        await client.get("/health")
    first, second, third = answered(lines())
    assert first["request_id"] == "mine"
    assert {"method": "POST", "path": COMPLETIONS, "status": 200}.items() <= first.items()
    assert (first["prompt_tokens"], first["completion_tokens"]) == (3, 2)
    assert 0 <= first["duration"] < 60 and first["level"] == "INFO"
    assert (second["status"], second["completion_tokens"]) == (200, 2)
    assert (third["status"], "prompt_tokens" in third) == (400, False)


async def test_a_line_names_the_key_and_never_holds_it(log, engine, make_client, tmp_path, monkeypatch):
    monkeypatch.delenv("TRIMTAB_API_KEYS", raising=False)
    (tmp_path / "keys").write_text(f"alice:{SECRET}-alice\n")
    lines = log("json")
    async with make_client(engine, ApiConfig(access=AccessConfig(api_keys=tmp_path / "keys"))) as client:
        for key, status in ((f"{SECRET}-alice", 200), (f"{SECRET}-mallory", 401)):
            reply = await client.get("/v1/models", headers={"Authorization": f"Bearer {key}"})
            assert reply.status_code == status
    assert [told.get("key") for told in answered(lines())] == ["alice", None]
    assert not any(SECRET in line for line in lines())


EVIL = (
    "\n2026-01-01T00:00:00.000Z ERROR forged: x",
    "\x1b[31m",
    "\u202egnp",
    "\x85\u2028",
    "\x7f",
    '" a="b',
    "\\",
)


@pytest.mark.parametrize("log_format", FORMATS)
async def test_nothing_that_is_sent_can_break_or_forge_a_line(log, engine, make_client, log_format):
    lines = log(log_format)
    evil = "".join(EVIL)
    quoted = "".join(f"%{byte:02x}" for byte in evil.encode())
    async with make_client(engine) as client:
        for path in (f"/{quoted}", f"/v1/models/{quoted}", f"/v1/models?{quoted}={quoted}"):
            await client.get(path)
        for header in ("X-Request-Id", "User-Agent", "Host", "Authorization", "traceparent"):
            await client.get(
                "/v1/models", headers={header: evil.encode("latin-1", "replace").replace(b"\n", b"\t")}
            )
        await client.get("/v1/models", headers={"X-Request-Id": 'a status=200 key="root"'})
        good = {"messages": [{"role": "user", "content": "a"}]}
        for bad in (
            {"model": evil},
            {evil: evil},
            {"guidance": {"heads": {evil: 1}}},
            {"guidance": {evil: 1}},
            {"messages": [{"role": evil, "content": evil}]},
            {"metadata": {evil: evil}, "user": evil},
            {"stop": [evil + "\ud800"]},
        ):
            await client.post(CHAT, content=json.dumps(good | bad), headers=JSON)
        await client.request("BREW", "/v1/models")
    told = lines()
    assert len(told) == 3 + 6 + 7 + 1, "one line each"
    assert not any(line.startswith("2026-01-01") for line in told)
    if log_format == "text":
        assert sum(' request_id="a status=200 key=\\"root\\"" ' in line for line in told) == 1
        assert not any(" a=" in line.replace('\\"', "") for line in told if "status=404" not in line)
    else:
        assert json.loads(told[0])["path"] == f"/{evil}"


def say(secret: str) -> list[tuple[str, str, Any]]:
    """Requests of every kind, right and wrong, that hold it wherever they can."""
    turn = {"role": "user", "content": f"a {secret}"}
    function = {"name": secret, "description": secret, "parameters": {"type": "object", "title": secret}}
    chats: list[dict[str, Any]] = [
        {},
        {"stream": True},
        {"n": 2, "stop": [secret + "!"], "bad_words": [secret + "?"]},
        {"tools": [{"type": "function", "function": function}]},
        {"temperature": secret},
        {secret: secret},
        {"messages": secret},
        {"messages": [{"role": secret, "content": secret}]},
        {"messages": [turn, {"role": "assistant", "content": {"x": secret}}]},
        {
            "response_format": {
                "type": "json_schema",
                "json_schema": {"name": "x", "schema": {"type": secret}},
            }
        },
        {"guidance": {"heads": {secret: 1}}},
        {"chat_template_kwargs": {"x": secret}},
        {"chat_template": secret},
        {"stop": secret * 99},
        {"model": secret},
    ]
    given = {"messages": [turn, {"role": "assistant", "content": secret}]}
    return [
        *(("POST", CHAT, {"messages": [turn], "max_tokens": 40} | chat) for chat in chats),
        ("POST", COMPLETIONS, {"prompt": secret, "max_tokens": 40}),
        ("POST", COMPLETIONS, {"prompt": [secret, secret], "echo": True, "logprobs": 1}),
        ("POST", COMPLETIONS, {"prompt": {"x": secret}}),
        ("POST", COMPLETIONS, {"prompt": secret * 99}),
        ("POST", RESPONSES, {"input": secret, "instructions": secret}),
        ("POST", RESPONSES, {"input": secret, "stream": True}),
        ("POST", RESPONSES, {"input": [{"type": secret}]}),
        ("POST", "/v1/score", given),
        ("POST", "/v1/score", {"prompt": secret}),
        ("POST", "/tokenize", {"prompt": secret}),
        ("POST", "/tokenize", {"messages": [turn]}),
        ("POST", "/tokenize", {"prompt": [secret]}),
        ("POST", "/detokenize", {"tokens": [secret]}),
        ("POST", CHAT, f'{{"messages": "{secret}'),
        ("POST", CHAT, f'{{"{secret}": 1, "{secret}": 2}}'),
        ("GET", f"/v1/models?x={secret}", None),
        ("GET", f"/health?x={secret}", None),
    ]


async def send_all(client, secret: str) -> set[int]:
    statuses = set()
    for method, path, body in say(secret):
        sent = {"content": body} if isinstance(body, str) else {"json": body}
        headers = {"Content-Type": "application/json", "User-Agent": secret, "Cookie": secret}
        reply = await client.request(method, path, headers=headers, **(sent if body else {}))
        statuses.add(reply.status_code)
    return statuses


@pytest.mark.parametrize("log_format", FORMATS)
@pytest.mark.parametrize("fault", [None, "failed", "bug", "template", "warning"])
async def test_what_was_asked_and_said_is_in_no_line(log, make_engine, make_client, log_format, fault):
    template = None
    if fault == "template":
        template = "{{ raise_exception(messages[0].content) }}"
    engine = make_engine("kind", **({"chat_template": template} if template else {}))
    if fault == "failed":
        engine.fail_after = 1
    elif fault == "bug":
        engine.bug = ValueError(f"of a prompt: {SECRET}")
        engine.bug.__cause__ = KeyError(SECRET)
        engine.bug.add_note(SECRET)
    elif fault == "warning":
        submit = engine.submit

        def submit_and_warn(request):
            warnings.warn(f"of a prompt: {SECRET}", stacklevel=1)
            return submit(request)

        engine.submit = submit_and_warn
    lines = log(log_format)
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        async with make_client(engine) as client:
            statuses = await send_all(client, SECRET)
    assert {200, 400, 404} <= statuses
    told = lines()
    assert sum("answered" in line for line in told) == len(say(SECRET)) - 1, "all but /health"
    assert not any(SECRET in line for line in told), [line for line in told if SECRET in line]
    if fault == "bug":
        assert any("ValueError" in line for line in told), "where and what it was is told"
        assert any("conftest.py" in line for line in told)


@pytest.mark.parametrize("log_format", FORMATS)
async def test_prompts_and_replies_are_logged_for_who_asks_for_it(log, engine, make_client, log_format):
    lines = log(log_format, True)
    config = ApiConfig(telemetry=TelemetryConfig(log_prompts=True))
    async with make_client(engine, config) as client:
        await client.post(COMPLETIONS, json={"prompt": SECRET + "\n\x1b"})
        engine.bug = ValueError(f"of a prompt: {SECRET}")
        await client.post(COMPLETIONS, json={"prompt": "a", "stream": True})
    told = [line for line in lines() if SECRET in line]
    assert sum("prompt=" in line or '"prompt":' in line for line in told) == 1
    assert sum("reply=" in line or '"reply":' in line for line in told) == 1
    assert any("ValueError" in line for line in told)


@pytest.mark.parametrize("log_format", FORMATS)
def test_uvicorns_lines_and_those_of_warnings_have_the_same_format(log, engine, serve, log_format):
    lines = log(log_format)
    url = serve(create_app(engine, engine.tokenizer))
    with socket.create_connection(("127.0.0.1", int(url.rpartition(":")[2]))) as connection:
        connection.sendall(b"GARBAGE \x1b[31m\r\n\r\n")
        assert b"400" in connection.recv(1000)
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        warnings.warn("two\nlines", stacklevel=1)
    engine.bug = ValueError(f"of a prompt: {SECRET}")
    reply = httpx.post(url + COMPLETIONS, json={"prompt": "a"}, headers={"X-Request-Id": "mine"})
    assert reply.status_code == 500
    deadline = time.monotonic() + 10
    while not any("ValueError" in line for line in lines()) and time.monotonic() < deadline:
        time.sleep(0.01)  # it is logged once the answer is sent
    told = lines()
    assert any("uvicorn.error" in line and "Exception in ASGI" in line and "mine" in line for line in told)
    assert any("ValueError" in line for line in told) and not any(SECRET in line for line in told)
    assert any("uvicorn.error" in line and "Invalid HTTP request" in line for line in told)
    assert any("py.warnings" in line and r"\ntwo\nlines" in line for line in told)


@pytest.mark.parametrize("log_format", FORMATS)
def test_an_errors_trace_cannot_forge_a_line(log, log_format):
    lines = log(log_format)
    try:
        raise ValueError("x\n2026-01-01T00:00:00.000Z ERROR forged: y\r\x1b[2K\u202e\ud800")
    except ValueError:
        logging.getLogger("trimtab.x").exception("a\nb\ud800")
    logging.getLogger("trimtab.x").warning("%d", "no number")  # a bug of ours: no line, and no other output
    told = lines()
    assert not any(line.startswith("2026-01-01") for line in told)
    assert sys.stderr is not None and any("forged" in line for line in told)
    if log_format == "json":
        assert json.loads(told[0])["exception"].startswith("Traceback")
