"""A client that leaves takes its requests with it; a failure ends its own request and nothing else."""

from __future__ import annotations

import json
import socket
import time

import httpx
import pytest

from trimtab.server.api.app import create_app
from trimtab.server.api.config import ApiConfig

BODY = {"messages": [{"role": "user", "content": "hello"}]}
CHAT = "/v1/chat/completions"


def wait_until(condition, seconds=5.0):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.005)


@pytest.fixture
def holding(engine, serve):
    engine.hold_after = 3
    app = create_app(engine, engine.tokenizer, ApiConfig(default_head="kind"))
    return engine, serve(app)


def test_leaving_a_stream_aborts_its_request(holding):
    engine, url = holding
    with httpx.stream("POST", url + CHAT, json={**BODY, "stream": True}) as response:
        lines = response.iter_lines()
        while '"content":"s"' not in next(lines):
            pass
        assert len(engine.running) == 1
    wait_until(lambda: engine.aborted)
    wait_until(lambda: not engine.running)


@pytest.mark.parametrize(
    ("path", "body", "count"),
    [
        (CHAT, BODY, 1),
        ("/v1/completions", {"prompt": ["abcd"] * 3}, 3),
        ("/v1/responses", {"input": "hello"}, 1),
    ],
)
def test_leaving_before_a_whole_reply_aborts_every_request_behind_it(holding, path, body, count):
    engine, url = holding
    request = httpx.Request("POST", url + path, json=body)
    head = "".join(f"{name}: {value}\r\n" for name, value in request.headers.items())
    with socket.create_connection((request.url.host, request.url.port)) as connection:
        connection.sendall(f"POST {path} HTTP/1.1\r\n{head}\r\n".encode() + request.content)
        wait_until(lambda: len(engine.running) == count)
    wait_until(lambda: len(engine.aborted) == count)
    wait_until(lambda: not engine.running)


def test_the_others_are_served_while_one_waits(holding):
    engine, url = holding
    with httpx.stream("POST", url + CHAT, json={**BODY, "stream": True}) as response:
        lines = response.iter_lines()  # kept: collecting it would close the stream
        next(lines)
        assert httpx.post(url + CHAT, json={**BODY, "max_tokens": 2}).status_code == 200
        assert len(engine.running) == 1


@pytest.mark.anyio
async def test_a_finished_request_is_not_aborted(client, engine):
    await client.post(CHAT, json=BODY)
    await client.post(CHAT, json={**BODY, "stream": True})
    assert engine.aborted == []
    assert engine.running == {}


@pytest.mark.anyio
async def test_a_failed_request_is_a_500_in_openais_shape(client, engine):
    engine.fail_after = 2
    response = await client.post(CHAT, json=BODY)
    assert response.status_code == 500
    assert response.json() == {
        "error": {
            "message": "the tensor is on fire",
            "type": "server_error",
            "param": None,
            "code": "engine_failed",
        }
    }
    engine.fail_after = None
    assert (await client.post(CHAT, json=BODY)).status_code == 200


@pytest.mark.anyio
async def test_a_failure_in_a_stream_is_an_error_chunk_and_the_end(client, engine):
    engine.fail_after = 2
    response = await client.post(CHAT, json={**BODY, "stream": True})
    *chunks, error, done = [line for line in response.text.split("\n\n") if line]
    assert len(chunks) == 1 + 2
    assert json.loads(error.removeprefix("data: "))["error"]["message"] == "the tensor is on fire"
    assert done == "data: [DONE]"


@pytest.mark.anyio
async def test_a_request_ended_by_a_shutdown_is_to_be_sent_again(client, engine):
    engine.fail_after, engine.failure_reason = 2, "shutdown"
    response = await client.post(CHAT, json=BODY)
    assert (response.status_code, response.json()["error"]["code"]) == (503, "shutting_down")
    assert int(response.headers["retry-after"]) > 0


@pytest.mark.anyio
async def test_one_failed_prompt_aborts_its_siblings(client, engine):
    engine.fail_after = 2
    response = await client.post("/v1/completions", json={"prompt": ["abcdef", "a"]})
    assert response.status_code == 500
    assert engine.running == {}


@pytest.mark.parametrize("stream", [False, True])
def test_our_own_bugs_are_told_without_detail_and_logged_with_it(engine, serve, caplog, stream):
    url = serve(create_app(engine, engine.tokenizer, ApiConfig(default_head="kind")))
    engine.bug = ZeroDivisionError("secret")
    response = httpx.post(url + CHAT, json={**BODY, "stream": stream})
    lines = response.text.strip().split("\n\n")
    error = json.loads(lines[-2 if stream else -1].removeprefix("data: "))["error"]
    assert response.status_code == (200 if stream else 500)
    assert (error["type"], error["param"], error["code"]) == ("server_error", None, None)
    assert "secret" not in response.text
    wait_until(lambda: "ZeroDivisionError: secret" in caplog.text)  # after the response is sent
    wait_until(lambda: not engine.running)
    engine.bug = None
    assert httpx.post(url + CHAT, json=BODY).status_code == 200
