"""How much a request may hold, and what it costs to refuse one that holds more."""

from __future__ import annotations

import asyncio
import threading

import pytest
from pydantic import ValidationError
from starlette.requests import ClientDisconnect

from trimtab.server.api import strict_json
from trimtab.server.api.schemas.chats import ChatRequest
from trimtab.server.api.schemas.completions import CompletionRequest
from trimtab.server.api.schemas.readings import DetokenizeRequest
from trimtab.server.api.tokens import NUM_THREADS, Encoding

pytestmark = pytest.mark.anyio

MANY = 20_000
FIELDS_OF_A_PART = 2
KINDS = {
    "/v1/chat/completions": ChatRequest,
    "/v1/completions": CompletionRequest,
    "/detokenize": DetokenizeRequest,
}
MESSAGES = [{"role": "user", "content": "hello"}]
CALL = {"id": "a", "function": {"name": "f", "arguments": "{}"}}
BAD = {
    "keys": ("/v1/chat/completions", {f"key{i}": 1 for i in range(MANY)}, "unknown field"),
    "messages": ("/v1/chat/completions", {"messages": MESSAGES * MANY}, "has 20000 messages, of at most"),
    "roles": ("/v1/chat/completions", {"messages": [{"role": "usr"}] * 4096}, "messages[0].role"),
    "parts": (
        "/v1/chat/completions",
        {"messages": [{"role": "user", "content": [{"type": "text", "text": ""}] * MANY}]},
        "has 20000 content parts and tool calls, of at most",
    ),
    "part": (
        "/v1/chat/completions",
        {"messages": [{"role": "user", "content": [{"type": "x"}] * 16_000}]},
        "messages[0].content[0].type",
    ),
    "calls": (
        "/v1/chat/completions",
        {"messages": [{"role": "assistant", "tool_calls": [CALL] * MANY}]},
        "has 20000 content parts and tool calls, of at most",
    ),
    "stop": ("/v1/chat/completions", {"stop": ["a"] * MANY}, "has 20000 strings, of at most 64"),
    "biases": (
        "/v1/chat/completions",
        {"logit_bias": {str(i): 0 for i in range(70_000)}},
        "of at most 65536",
    ),
    "bias": (
        "/v1/chat/completions",
        {"logit_bias": {str(i): "a" for i in range(20_000)}},
        "'0' must be given a number",
    ),
    "heads": (
        "/v1/chat/completions",
        {"guidance": {"heads": {str(i): 1 for i in range(MANY)}}},
        "has 20000 heads",
    ),
    "options": (
        "/v1/chat/completions",
        {"guidance": {"rule": {"kind": "tilt"} | {str(i): 1 for i in range(MANY)}}},
        "has 20001 options",
    ),
    "tools": ("/v1/chat/completions", {"tools": [{}] * MANY}, "has 20000 tools, of at most"),
    "tool": ("/v1/chat/completions", {"tools": [{}] * 100}, "tools[0].type: is required"),
    "choices": ("/v1/chat/completions", {"guided_choice": [1] * MANY}, "guided_choice[0]"),
    "prompts": ("/v1/completions", {"prompt": ["a"] * MANY}, "has 20000 prompts, of at most"),
    "replies": ("/v1/completions", {"prompt": ["a"] * 2048, "n": 3}, "makes 6144 replies, of at most 4096"),
    "tokens": ("/detokenize", {"tokens": ["a"] * MANY}, "tokens[0]"),
}


@pytest.mark.parametrize("name", BAD)
async def test_what_a_request_holds_is_limited_and_the_first_error_ends_its_reading(name, client):
    path, fields, problem = BAD[name]
    body = {"messages": MESSAGES} | fields if "chat" in path else fields
    with pytest.raises(ValidationError) as error:
        KINDS[path].model_validate(body)
    assert error.value.error_count() <= FIELDS_OF_A_PART
    response = await client.post(path, json=body)
    assert response.status_code == 400
    assert problem in response.json()["error"]["message"]


async def test_a_prompt_that_cannot_fit_is_refused_before_it_is_tokenised(engine, make_client, monkeypatch):
    longest = max(map(len, engine.tokenizer.get_vocab()))
    text, told = "a" * (100 * longest + 1), "this model's maximum context length is 100 tokens"
    refused = {
        "/v1/completions": {"prompt": ["a", text]},
        "/v1/chat/completions": {"messages": [{"role": "user", "content": text}]},
        "/v1/score": {"prompt": text, "completion": "b"},
    }
    async with make_client(engine) as client:
        monkeypatch.setattr(type(engine.tokenizer), "encode", lambda *_: pytest.fail("tokenised"))
        monkeypatch.setattr(type(engine.tokenizer), "__call__", lambda *_, **__: pytest.fail("tokenised"))
        for path, body in refused.items():
            error = (await client.post(path, json=body)).json()["error"]
            assert error["code"] == "context_length_exceeded"
            assert told in error["message"]


async def test_few_texts_are_encoded_at_once_and_none_for_clients_that_have_left(engine):
    encoding, begun, go_on = Encoding(engine.tokenizer, 100), [], threading.Event()
    present, left = Client(), Client()

    def work(name):
        begun.append(name)
        go_on.wait(60)
        return name

    waiting = [asyncio.create_task(encoding.run(present, work, i)) for i in range(NUM_THREADS)]
    waiting.append(asyncio.create_task(encoding.run(left, work, "left")))
    waiting.append(asyncio.create_task(encoding.run(present, work, "last")))
    while len(begun) < NUM_THREADS:
        await asyncio.sleep(0.001)
    await asyncio.sleep(0.05)  # in which a further one could begin
    assert sorted(begun) == list(range(NUM_THREADS))
    left.has_left = True
    go_on.set()
    found = await asyncio.gather(*waiting, return_exceptions=True)
    assert [found[-1], *map(type, found[-2:-1])] == ["last", ClientDisconnect]
    assert "left" not in begun


class Client:
    has_left = False

    async def is_disconnected(self):
        return self.has_left


@pytest.mark.parametrize(
    ("content", "status"),
    [
        (b'{"messages": [' + b"[]," * 140_000 + b"[]]}", 413),
        (b'{"messages": [' + b"1," * 1_100_000 + b"1]}", 413),
        (b'{"messages": [' + b"1," * 100_000 + b"1]}", 400),
        (b'{"messages": "' + b"[,:{" * 400_000 + b'"}', 400),
        (b'{"messages": "' + b'[,\\\\\\":' * 400_000 + b'"}', 400),
    ],
    ids=["lists", "values", "fewer values", "text", "text with quotes"],
)
async def test_a_body_is_bounded_in_what_stands_outside_of_its_texts(client, content, status):
    response = await client.post(
        "/v1/chat/completions", content=content, headers={"content-type": "application/json"}
    )
    assert response.status_code == status, response.text
    assert (response.json()["error"]["code"] == "body_too_large") == (status == 413)


async def test_long_bodies_are_bounded_together_too(engine, make_client, monkeypatch):
    monkeypatch.setattr(strict_json, "MAX_BODIES_MIB", 1)
    async with make_client(engine) as client:
        reader = client._transport.app.state.bodies
        reader.num_bytes = 2**20
        small, long = ({"messages": MESSAGES, "user": "a" * num} for num in (10, 2**17))
        assert (await client.post("/v1/chat/completions", json=small)).status_code == 200
        refused = await client.post("/v1/chat/completions", json=long)
        assert (refused.status_code, refused.json()["error"]["code"]) == (429, "queue_full")
        reader.num_bytes = 0
        assert (await client.post("/v1/chat/completions", json=long)).status_code == 200
        assert reader.num_bytes == 0
