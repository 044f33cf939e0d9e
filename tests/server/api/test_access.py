"""Keys, hosts, rates, time limits and the bounded queue, over the real application."""

from __future__ import annotations

import asyncio
import logging
import socket
import time
from dataclasses import replace
from pathlib import Path

import httpx
import pytest
import uvicorn

from trimtab.guidance.errors import UserError
from trimtab.server.api.access.config import AccessConfig
from trimtab.server.api.access.keys import VARIABLE, Keys, load_keys
from trimtab.server.api.access.rates import Rates
from trimtab.server.api.access.slow import timed_protocol
from trimtab.server.api.app import create_app
from trimtab.server.api.config import ApiConfig
from trimtab.server.engine.async_engine import Load, QueueLimits
from trimtab.server.engine.request import QueueFullError

CHAT = "/v1/chat/completions"
BODY = {"messages": [{"role": "user", "content": "hello"}]}
KEY = "correct-horse-battery"


@pytest.fixture
def keyed(tmp_path: Path) -> AccessConfig:
    path = tmp_path / "keys"
    path.write_text(f"# of the team\nana:{KEY}\n\nother-key-of-nobody\n")
    return AccessConfig(api_keys=path)


def connected(make_client, engine, access: AccessConfig) -> httpx.AsyncClient:
    return make_client(engine, ApiConfig(access=access))


def bearer(key: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {key}"}


@pytest.mark.anyio
async def test_who_has_no_key_is_told_so_and_what_watches_the_server_needs_none(make_client, engine, keyed):
    async with connected(make_client, engine, keyed) as client:
        for headers in ({}, bearer(KEY[:-1]), bearer(KEY + "x"), {"Authorization": KEY}, bearer("")):
            for method, path in (("POST", CHAT), ("GET", "/v1/models"), ("GET", "/openapi.json")):
                refused = await client.request(method, path, json=BODY, headers=headers)
                assert refused.status_code == 401
                assert refused.json()["error"]["code"] == "invalid_api_key"
                assert refused.headers["www-authenticate"] == "Bearer"
        assert (await client.post(CHAT, json=BODY, headers=bearer(KEY))).status_code == 200
        assert (await client.get("/v1/models", headers=bearer("other-key-of-nobody"))).status_code == 200
        assert [(await client.get(path)).status_code for path in ("/health", "/metrics")] == [200, 200]
    assert len(engine.submitted) == 1


def test_keys_come_from_the_environment_too_and_are_kept_nowhere(tmp_path: Path, keyed):
    keys = load_keys(keyed.api_keys, {VARIABLE: "bo:another-long-key, "})
    assert [keys.find(key) for key in (KEY, "another-long-key", "nobody-knows-it")] == ["ana", "bo", None]
    assert KEY not in repr(keys)
    assert not load_keys(None, {})
    for text in ("", "# nothing\n", "short\n", "has space inside\n", "ana:\n"):
        path = tmp_path / "bad"
        path.write_text(text)
        with pytest.raises(UserError, match="--api-keys") as raised:
            load_keys(path, {})
        assert "short" not in str(raised.value)
    with pytest.raises(UserError, match="cannot be read"):
        load_keys(tmp_path / "none", {})


@pytest.mark.anyio
@pytest.mark.parametrize(
    ("hosts", "host", "status"),
    [
        (("localhost", "127.0.0.1", "::1"), "localhost:8000", 200),
        (("localhost", "127.0.0.1", "::1"), "[::1]:8000", 200),
        (("localhost", "127.0.0.1", "::1"), "evil.example.org", 421),
        (("localhost", "127.0.0.1", "::1"), "localhost.evil.example.org", 421),
        (("localhost", "127.0.0.1", "::1"), "[", 421),
        (("*.example.org",), "api.example.org", 200),
        (("*.example.org",), "badexample.org", 421),
        ((), "whatever", 200),
    ],
)
async def test_a_server_answers_for_its_own_names(make_client, engine, hosts, host: str, status: int):
    async with connected(make_client, engine, AccessConfig(allowed_hosts=hosts)) as client:
        for path in ("/v1/models", "/health"):
            assert (await client.get(path, headers={"Host": host})).status_code == status


@pytest.mark.anyio
async def test_pages_of_other_origins_read_nothing_unless_they_may(make_client, engine):
    ask = {"Origin": "https://page.example", "Access-Control-Request-Method": "POST"}
    async with connected(make_client, engine, AccessConfig()) as client:
        assert "access-control-allow-origin" not in (await client.get("/v1/models", headers=ask)).headers
    access = AccessConfig(allowed_origins=("https://page.example",))
    async with connected(make_client, engine, access) as client:
        allowed = await client.options(CHAT, headers=ask)
        assert allowed.headers["access-control-allow-origin"] == "https://page.example"
        refused = await client.options(CHAT, headers={**ask, "Origin": "https://other.example"})
        assert "access-control-allow-origin" not in refused.headers


def test_a_key_earns_requests_as_time_goes_by():
    now = [0.0]
    rates = Rates(per_minute=2, clock=lambda: now[0])
    assert [rates.begin("a"), rates.begin("a"), rates.begin("a")] == [None, None, 30]
    assert rates.begin("b") is None
    now[0] = 30
    assert [rates.begin("a"), rates.begin("a")] == [None, 30]
    now[0] = 1e6
    assert [rates.begin("a") for _ in range(3)] == [None, None, 30], "no more than a minute's worth"


@pytest.mark.anyio
async def test_a_key_has_so_many_requests_at_once(make_client, engine, keyed):
    engine.hold_after = 1
    async with connected(make_client, engine, replace(keyed, max_requests_per_key=1)) as client:
        waiting = asyncio.create_task(client.post(CHAT, json=BODY, headers=bearer(KEY)))
        while not engine.running:
            await asyncio.sleep(0.001)
        refused = await client.post(CHAT, json=BODY, headers=bearer(KEY))
        assert (refused.status_code, refused.headers["retry-after"]) == (429, "1")
        other = await client.get("/v1/models", headers=bearer("other-key-of-nobody"))
        assert other.status_code == 200
        waiting.cancel()
        await asyncio.gather(waiting, return_exceptions=True)
        assert (await client.get("/v1/models", headers=bearer(KEY))).status_code == 200


@pytest.mark.anyio
@pytest.mark.parametrize("stream", [False, True])
async def test_a_request_ends_when_it_has_had_its_time(make_client, engine, stream: bool):
    engine.hold_after = 2
    async with connected(make_client, engine, AccessConfig(request_timeout=1.0)) as client:
        done = await client.post(CHAT, json={**BODY, "stream": stream})
        if stream:
            assert '"code":"request_timeout"' in done.text
            assert done.text.endswith("data: [DONE]\n\n")
        else:
            assert (done.status_code, done.json()["error"]["code"]) == (504, "request_timeout")
    assert len(engine.aborted) == 1


@pytest.mark.anyio
async def test_a_full_queue_is_told_before_anything_else(make_client, engine, monkeypatch):
    def refuse(request):
        raise QueueFullError("4 requests are under way; try again in a moment")

    monkeypatch.setattr(engine, "submit", refuse)
    async with connected(make_client, engine, AccessConfig()) as client:
        full = await client.post(CHAT, json={**BODY, "stream": True})
    assert (full.status_code, full.json()["error"]["code"]) == (429, "queue_full")
    assert int(full.headers["retry-after"]) > 0


def test_a_queue_is_bounded_in_requests_and_in_tokens():
    limits = QueueLimits(max_requests=4, max_tokens=10)
    limits.check({"ana": Load(3, 5)}, "ana", 5)
    limits.check({}, "ana", 99)  # alone, it could never be served otherwise
    for load, num_tokens in ((Load(4, 5), 1), (Load(1, 5), 6)):
        with pytest.raises(QueueFullError):
            limits.check({"ana": load}, "ana", num_tokens)


def test_nobody_keeps_others_out_of_the_queue():
    limits, loads = QueueLimits(max_requests=4, max_tokens=1000), {"ana": Load(4, 900)}
    for _ in range(2):
        limits.check(loads, "bo", 250)
        loads["bo"] = Load(loads.get("bo", Load()).requests + 1, 250)
    for tenant, num_tokens in (("bo", 1), ("ana", 1), ("eve", 400)):
        with pytest.raises(QueueFullError):
            limits.check(loads, tenant, num_tokens)


HEAD = b"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"


@pytest.mark.parametrize(
    ("sent", "says"),
    [(b"", b""), (HEAD, b""), (HEAD + b"Content-Length: 99\r\n\r\n{", b"408")],
    ids=["nothing", "no end of the headers", "no end of the body"],
)
def test_who_says_a_request_too_slowly_is_cut_off(engine, sent: bytes, says: bytes):
    app = create_app(engine, engine.tokenizer, ApiConfig(access=AccessConfig(read_timeout=0.2)))
    listener = socket.create_server(("127.0.0.1", 0))
    server = uvicorn.Server(uvicorn.Config(app, log_config=None, http=timed_protocol(0.2), lifespan="off"))

    async def meet() -> tuple[bytes, float]:
        serving = asyncio.create_task(server.serve([listener]))
        while not server.started:
            await asyncio.sleep(0.005)
        began = time.monotonic()
        reader, writer = await asyncio.open_connection(*listener.getsockname())
        writer.write(sent)
        answer = await asyncio.wait_for(reader.read(), 5)
        took = time.monotonic() - began
        writer.close()
        server.should_exit = True
        await serving
        return answer, took

    answer, took = asyncio.run(meet())
    assert says in answer if says else answer == b""
    assert 0.15 < took < 3


def test_a_key_stands_in_no_log(engine, keyed, make_client, caplog):
    async def ask() -> None:
        async with connected(make_client, engine, keyed) as client:
            engine.fail_after = 0
            await client.post(CHAT, json=BODY, headers=bearer(KEY))
            await client.post(CHAT, json=BODY, headers=bearer(KEY[:-1]))

    with caplog.at_level(logging.DEBUG):
        asyncio.run(ask())
    assert KEY[:-1] not in caplog.text
    assert not Keys()
