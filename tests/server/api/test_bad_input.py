"""Each bad input: its status, the error's shape, the field it names; and the server still answers after."""

from __future__ import annotations

import json
from typing import Any

import pytest

from trimtab.server.api import strict_json
from trimtab.server.engine.request import MAX_LOGIT_BIAS, InvalidRequestError, SamplingParams

pytestmark = pytest.mark.anyio

USER = {"role": "user", "content": "hello"}
NAN, INFINITY = float("nan"), float("inf")

CHAT: list[tuple[dict[str, Any], str, str]] = [
    ({"messages": []}, "messages", "at least 1"),
    ({"messages": None}, "messages", "is required"),
    ({"messages": "hello"}, "messages", "valid list"),
    ({"messages": [{"role": "wizard", "content": "x"}]}, "messages[0].role", "'user'"),
    ({"messages": [{"role": "user"}]}, "messages[0].content", "is required"),
    ({"messages": [{"role": "user", "content": 3}]}, "messages[0].content", "valid list"),
    ({"messages": [{"role": "user", "content": None}]}, "messages[0].content", "is required"),
    ({"messages": [{"role": "user", "content": "\ud800"}]}, "messages[0].content[0].text", "Unicode"),
    ({"guidance": {"heads": {"\ud800": 1}}}, "guidance.heads.\\ud800", "no such head"),
    ({"stop": ["a", "b\udfff"]}, "stop[1]", "Unicode"),
    ({"\ud800": 1}, "\\ud800", "unknown field"),
    (
        {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}]},
        "messages[0].content[0].image_url",
        "not supported",
    ),
    ({"frobnicate": 1}, "frobnicate", "unknown field"),
    ({"temperature": "hot"}, "temperature", "valid number"),
    ({"temperature": NAN}, "temperature", "finite"),
    ({"temperature": INFINITY}, "temperature", "finite"),
    ({"temperature": -1}, "temperature", "-1"),
    ({"temperature": True}, "temperature", "valid number"),
    ({"top_p": 0}, "top_p", "above 0"),
    ({"top_p": NAN}, "top_p", "finite"),
    ({"top_k": -2}, "top_k", "-2"),
    ({"top_k": 2**31}, "top_k", "2147483647"),
    ({"top_k": 2**63}, "top_k", "9223372036854775808"),
    ({"top_k": 10**4000}, "top_k", "digits"),
    ({"temperature": 10**4000}, "temperature", ""),
    ({"temperature": 1e308}, "temperature", "0…100"),
    ({"top_k": 1.5}, "top_k", "integer"),
    ({"min_p": 2}, "min_p", "2"),
    ({"n": 0}, "n", "1…128"),
    ({"n": "2"}, "n", "integer"),
    ({"n": NAN}, "n", "integer"),
    ({"n": 2**63}, "n", "1…128"),
    ({"seed": 2**63}, "seed", "64 bits"),
    ({"seed": -(2**63) - 1}, "seed", "64 bits"),
    ({"stop": ""}, "stop", "empty"),
    ({"stop": [3]}, "stop[0]", "string"),
    ({"stop": 3}, "stop", "list"),
    ({"max_tokens": 0}, "max_tokens", "at least 1"),
    ({"max_completion_tokens": 0}, "max_completion_tokens", "at least 1"),
    ({"logprobs": 3}, "logprobs", "boolean"),
    ({"top_logprobs": 3}, "top_logprobs", "logprobs: true"),
    ({"logprobs": True, "top_logprobs": 21}, "top_logprobs", "20"),
    ({"logit_bias": {"5": NAN}}, "logit_bias.5", "finite"),
    ({"logit_bias": {"5": 101}}, "logit_bias", "-100…100"),
    ({"logit_bias": {"257": 1}}, "logit_bias", "0…256"),
    ({"logit_bias": {"x": 1}}, "logit_bias", "no token id"),
    ({"logit_bias": {"9" * 5000: 1}}, "logit_bias", "no token id"),
    ({"logit_bias": {"05": 1}}, "logit_bias", "no token id"),
    ({"logit_bias": {" 5": 1}}, "logit_bias", "no token id"),
    ({"logit_bias": {"+5": 1}}, "logit_bias", "no token id"),
    ({"logit_bias": {"5_0": 1}}, "logit_bias", "no token id"),
    ({"logit_bias": {"\u0665": 1}}, "logit_bias", "no token id"),
    ({"logit_bias": {"-0": 1}}, "logit_bias", "no token id"),
    ({"logit_bias": {"": 1}}, "logit_bias", "no token id"),
    ({"presence_penalty": 3}, "presence_penalty", "-2…2"),
    ({"frequency_penalty": -3}, "frequency_penalty", "-2…2"),
    ({"repetition_penalty": 0}, "repetition_penalty", "above 0"),
    ({"repetition_penalty": 1e-40}, "repetition_penalty", "0.01…100"),
    ({"repetition_penalty": 1e300}, "repetition_penalty", "0.01…100"),
    ({"guidance": {"strength": 1e300}}, "guidance.strength", "-10…10"),
    ({"guidance": {"heads": {"kind": -1e39}}}, "guidance.heads.kind", "-10…10"),
    ({"stream": "yes"}, "stream", "boolean"),
    ({"stream_options": {"include_usage": True}}, "stream_options", "stream: true"),
    ({"stream": True, "stream_options": {"x": 1}}, "stream_options.x", "unknown field"),
    ({"audio": {"voice": "x"}}, "audio", "not supported"),
    ({"modalities": ["text", "audio"]}, "modalities", "not supported"),
]

COMPLETIONS: list[tuple[dict[str, Any], str, str]] = [
    ({}, "prompt", "is required"),
    ({"prompt": None}, "prompt", "is required"),
    ({"prompt": []}, "prompt", "must be a string"),
    ({"prompt": ""}, "prompt", "no tokens"),
    ({"prompt": [[]]}, "prompt", "no tokens"),
    ({"prompt": [65, "a"]}, "prompt", "must be a string"),
    ({"prompt": [True]}, "prompt", "must be a string"),
    ({"prompt": [NAN]}, "prompt", "must be a string"),
    ({"prompt": "\ud800"}, "prompt", "Unicode"),
    ({"prompt": ["a", "\ud800"]}, "prompt", "Unicode"),
    ({"prompt": [257]}, "prompt", "0…256"),
    ({"prompt": [-1]}, "prompt", "0…256"),
    ({"prompt": "a", "logprobs": 21}, "logprobs", "0…20"),
    ({"prompt": "a", "logprobs": True}, "logprobs", "integer"),
    ({"prompt": "a", "logprobs": 10**4000}, "logprobs", "digits"),
    ({"prompt": ["a"] * 2049}, "prompt", "2049 prompts"),
    ({"prompt": [2**63]}, "prompt", "0…256"),
    ({"prompt": [10**4000]}, "prompt", "0…256"),
    ({"prompt": "a", "echo": 0}, "echo", "boolean"),
    ({"prompt": "a", "suffix": "b"}, "suffix", "not supported"),
    ({"prompt": "a", "messages": []}, "messages", "unknown field"),
]


async def assert_refused(client, path, content, status, param, says, code=None):
    if not isinstance(content, bytes):
        content = json.dumps(content).encode()  # writes NaN and Infinity as bare words
    response = await client.post(path, content=content, headers={"content-type": "application/json"})
    assert response.status_code == status, response.text
    assert set(response.json()) == {"error"}
    error = response.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert (error["type"], error["param"], error["code"]) == ("invalid_request_error", param, code)
    assert says in error["message"]
    assert param is None or error["message"].startswith(param.split(".")[0])
    assert "\n" not in error["message"]
    after = await client.post("/v1/chat/completions", json={"messages": [USER]})
    assert after.status_code == 200


@pytest.mark.parametrize(("body", "param", "says"), CHAT)
async def test_chat_refuses_and_names_the_field(client, body, param, says):
    await assert_refused(client, "/v1/chat/completions", {"messages": [USER], **body}, 400, param, says)


@pytest.mark.parametrize(("body", "param", "says"), COMPLETIONS)
async def test_completions_refuse_and_name_the_field(client, body, param, says):
    await assert_refused(client, "/v1/completions", body, 400, param, says)


@pytest.mark.parametrize(
    ("content", "says", "code"),
    [
        (b'{"messages": ', "not valid JSON", None),
        (b"", "JSON object", None),
        (b"[]", "JSON object", None),
        (b'"hello"', "JSON object", None),
        (b"null", "JSON object", None),
        (b"\xff\xfe", "", None),
        (b'{"messages": "\xff"}', "UTF-8", None),
        (b"[" * 100_000, "", None),
    ],
)
async def test_a_body_that_is_no_json_object_is_refused(client, content, says, code):
    await assert_refused(client, "/v1/chat/completions", content, 400, None, says, code)


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ('"seed": 1, "seed": 1', "seed"),
        ('"logit_bias": {"5": 1, "6": 1, "5": -1}', "logit_bias.5"),
        ('"guidance": {"heads": {"kind": 1, "kind": 2}}', "guidance.heads.kind"),
        ('"stop": "a", "stop": ["b"]', "stop"),
        ('"metadata": [{"a": 1}, {"a": {"b": 1, "b": 1}}]', "metadata[1].a.b"),
        ('"messages": [{"role": "user", "content": "a", "role": "system"}]', "messages[0].role"),
    ],
)
async def test_a_key_given_twice_is_refused_and_none_wins(client, fields, param):
    content = b'{"messages": [{"role": "user", "content": "a"}], ' + fields.encode() + b"}"
    says = "given twice"
    await assert_refused(client, "/v1/chat/completions", content, 400, param, says)


@pytest.mark.parametrize("digits", ["9" * 5000, "-" + "9" * 5000, "1" + "0" * 100_000])
@pytest.mark.parametrize("field", ["top_k", "seed", "n", "min_p", "temperature", "repetition_penalty"])
async def test_an_integer_of_any_length_is_refused_by_the_name_of_its_field(client, field, digits):
    content = b'{"messages": [{"role": "user", "content": "a"}], "%s": %s}' % (
        field.encode(),
        digits.encode(),
    )
    await assert_refused(client, "/v1/chat/completions", content, 400, field, "")


async def test_a_bias_for_more_tokens_than_are_allowed_is_refused():
    with pytest.raises(InvalidRequestError, match="65537 tokens") as error:
        SamplingParams(logit_bias=tuple((token, 1.0) for token in range(MAX_LOGIT_BIAS + 1)))
    assert error.value.param == "logit_bias"


async def test_a_body_without_end_is_refused_before_it_is_read(client, monkeypatch):
    monkeypatch.setattr(strict_json, "MAX_BODY_MIB", 1)
    sent = 0

    async def without_end():
        nonlocal sent
        while True:
            sent += 1
            yield b" " * 2**16

    response = await client.post(
        "/v1/chat/completions", content=without_end(), headers={"content-type": "application/json"}
    )
    assert (response.status_code, response.json()["error"]["code"]) == (413, "body_too_large")
    assert sent < 20


@pytest.mark.parametrize("depth", [100, 500, 800, 850, 900, 925, 950, 975, 1000, 2000])
async def test_deep_nesting_is_refused_and_breaks_nothing(client, depth):
    content = b'{"messages": ' + b"[" * depth + b"]" * depth + b"}"
    response = await client.post(
        "/v1/chat/completions", content=content, headers={"content-type": "application/json"}
    )
    assert response.status_code == 400


async def test_a_prompt_that_is_too_long_is_refused_with_both_numbers(client):
    for path, body, param in (
        ("/v1/completions", {"prompt": "a" * 100}, "prompt"),
        ("/v1/chat/completions", {"messages": [{"role": "user", "content": "a" * 83}]}, "messages"),
    ):
        says = "this model's maximum context length is 100 tokens for prompt and reply, the prompt has 100"
        await assert_refused(client, path, body, 400, param, says, "context_length_exceeded")


async def test_a_reply_that_cannot_fit_is_refused_with_the_room_there_is(client):
    body = {"prompt": "a" * 90, "max_tokens": 11}
    says = "ask for at most 10"
    await assert_refused(client, "/v1/completions", body, 400, "max_tokens", says, "context_length_exceeded")


@pytest.mark.parametrize("model", ["gpt-4", "", "\ud800"])
async def test_another_model_is_not_found(client, model):
    body = {"messages": [USER], "model": model}
    await assert_refused(client, "/v1/chat/completions", body, 404, "model", "'echo'", "model_not_found")
    await assert_refused(
        client, "/v1/completions", {"prompt": "a", "model": ""}, 404, "model", "'echo'", "model_not_found"
    )


@pytest.mark.parametrize("digits", ["9" * 19, "9" * 4000, "9" * 100_000])
async def test_a_reply_of_any_length_is_refused_with_the_room_there_is(client, digits):
    content = b'{"prompt": "a", "max_tokens": %s}' % digits.encode()
    says = "ask for at most 99"
    await assert_refused(
        client, "/v1/completions", content, 400, "max_tokens", says, "context_length_exceeded"
    )


@pytest.mark.parametrize(
    ("method", "path", "status", "says"),
    [
        (
            "POST",
            "/v1/embeddings",
            404,
            "POST /v1/embeddings: no such route; there is POST /v1/chat/completions, ",
        ),
        ("GET", "/v1/completions", 405, "GET /v1/completions: no such route; there is POST /v1/completions"),
        ("BREW", "/health", 405, "BREW /health: no such route; there is GET /health"),
        ("GET", "/" + "x" * 3000, 404, "x: no such route; there is POST /v1/chat/completions, "),
        ("GET", "/%0d%0aforged", 404, "GET /%0d%0aforged: no such route"),
    ],
)
async def test_an_unknown_route_is_told_what_exists(client, method, path, status, says):
    response = await client.request(method, path)
    error = response.json()["error"]
    assert (response.status_code, error["type"], error["param"]) == (status, "invalid_request_error", None)
    assert error["code"] == ("route_not_found" if status == 404 else "method_not_allowed")
    assert says in error["message"]


async def test_chat_without_a_template_is_refused_and_completions_go_on(make_engine, make_client):
    async with make_client(make_engine(chat_template=None)) as client:
        response = await client.post("/v1/chat/completions", json={"messages": [USER]})
        assert response.status_code == 400
        assert "--chat-template" in response.json()["error"]["message"]
        assert response.json()["error"]["param"] == "messages"
        assert (await client.post("/v1/completions", json={"prompt": "a"})).status_code == 200


async def test_what_the_template_refuses_is_told(make_engine, make_client):
    template = "{{ raise_exception('roles must alternate') }}"
    async with make_client(make_engine(chat_template=template)) as client:
        response = await client.post("/v1/chat/completions", json={"messages": [USER]})
        assert response.status_code == 400
        assert "roles must alternate" in response.json()["error"]["message"]
