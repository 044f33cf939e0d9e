"""Neutral fields: what asks for nothing fails no request and changes none; typos and demands still do."""

from __future__ import annotations

from typing import Any

import pytest

from trimtab.server.api import neutral
from trimtab.server.api.schemas.chats import ChatRequest

pytestmark = pytest.mark.anyio

USER = {"role": "user", "content": "hello"}
CHAT, COMPLETIONS = "/v1/chat/completions", "/v1/completions"


def neutral_values(table: neutral.Harmless) -> list[dict[str, Any]]:
    """Bodies in which every field of a table stands with its neutral values, and with null."""
    labels = {name: "x" for name, values in table.items() if values is neutral.ANYTHING}
    others = {name: values for name, values in table.items() if values is not neutral.ANYTHING}
    first = {name: values[0] for name, values in others.items() if values}
    last = {name: values[-1] for name, values in others.items() if values}
    return [labels | first, last, dict.fromkeys(table)]


def called(of_call, of_function):
    function = {"name": "f", "arguments": "{}", **of_function}
    call = {"id": "c", "type": "function", "function": function, **of_call}
    return {"role": "assistant", "content": "hm", "tool_calls": [call]}


def tool(of_tool, of_function):
    return {"type": "function", "function": {"name": "f", "strict": None, **of_function}, **of_tool}


BODIES = [
    *({"messages": [USER]} | more for more in neutral_values(neutral.CHAT)),
    *({"messages": [USER | more]} for more in neutral_values(neutral.MESSAGE)),
    *(
        {"messages": [{"role": "user", "content": [{"type": "text", "text": "hello"} | more]}]}
        for more in neutral_values(neutral.TEXT_PART)
    ),
    *({"messages": [USER], "stream_options": more} for more in neutral_values(neutral.STREAM_OPTIONS)),
    {"messages": [USER], "guidance": {"frobnicate": None, "max_kl": None}},
    {"messages": [{**USER, "frobnicate": None}], "frobnicate": None, "guidance": None},
    {"messages": [USER], "top_k": -1, "best_of": 1, "n": 1, "logprobs": False, "top_logprobs": 0},
    {"messages": [USER], "metadata": {"a": "b"}, "prediction": {"type": "content", "content": "x"}},
    {"messages": [USER], "length_penalty": 1.0, "priority": 0, "store": True, "stop": []},
    {"messages": [{"role": "user", "content": "hello", "cache_control": {"type": "ephemeral"}}]},
]


@pytest.mark.parametrize("body", BODIES)
async def test_what_asks_for_nothing_changes_no_request(client, engine, body):
    for each in ({"messages": [USER]}, body):
        response = await client.post(CHAT, json=each)
        assert response.status_code == 200, response.text
    plain, asked = engine.submitted
    assert (plain.prompt_token_ids, plain.sampling, plain.guidance.heads) == (
        asked.prompt_token_ids,
        asked.sampling,
        asked.guidance.heads,
    )


TOOL_BODIES = [
    *({"messages": [USER, called(more, {})]} for more in neutral_values(neutral.CALL)),
    *({"messages": [USER, called({}, more)]} for more in neutral_values(neutral.CALLED)),
    *({"messages": [USER], "tools": [tool(more, {})]} for more in neutral_values(neutral.TOOL)),
    *({"messages": [USER], "tools": [tool({}, more)]} for more in neutral_values(neutral.TOOL)),
]


@pytest.mark.parametrize("body", TOOL_BODIES)
async def test_tools_and_calls_are_the_same_whatever_else_is_said_of_them(body):
    plain = {"messages": [USER, called({}, {})]} if len(body["messages"]) == 2 else {"messages": [USER]}
    plain |= {"tools": [tool({}, {})]} if "tools" in body else {}
    assert ChatRequest.model_validate(body) == ChatRequest.model_validate(plain)


@pytest.mark.parametrize("more", [*neutral_values(neutral.COMPLETION), {"logprobs": False, "echo": False}])
async def test_completions_have_neutral_values_of_their_own(client, engine, more):
    for each in ({}, more):
        response = await client.post(COMPLETIONS, json={"prompt": "abc", **each})
        assert response.status_code == 200, response.text
    assert engine.submitted[0].sampling == engine.submitted[1].sampling


async def test_the_newer_name_of_the_limit_wins(client, engine):
    body = {"messages": [USER], "max_tokens": 5, "max_completion_tokens": 3}
    assert (await client.post(CHAT, json=body)).status_code == 200
    assert engine.submitted[0].sampling.max_tokens == 3
    refused = await client.post(CHAT, json=body | {"max_completion_tokens": 0})
    assert refused.json()["error"]["param"] == "max_completion_tokens"


@pytest.mark.parametrize(
    ("body", "param", "says"),
    [
        ({"temprature": 1}, "temprature", "did you mean temperature?"),
        ({"max_completions_tokens": 1}, "max_completions_tokens", "did you mean max_completion_tokens?"),
        ({"guidance": {"strenght": 1}}, "guidance.strenght", "did you mean strength?"),
        ({"messages": [{**USER, "nam": "x"}]}, "messages[0].nam", "did you mean name?"),
        ({"zzz": 1}, "zzz", "unknown field; remove it"),
        ({"z" * 10**6: 1}, "z" * 499 + "…", "zzz"),
        ({"use_beam_search": True}, "use_beam_search", "leave it out, or send false"),
        ({"length_penalty": True}, "length_penalty", "send 1"),
        ({"cache_salt": ""}, "cache_salt", "must have 1…256 characters"),
        ({"audio": {}}, "audio", "is not supported; leave it out"),
        ({"typical_p": 0.5}, "typical_p", "is not supported"),
    ],
)
async def test_typos_and_demands_are_refused_with_what_would_do(client, body, param, says):
    response = await client.post(CHAT, json={"messages": [USER], **body})
    error = response.json()["error"]
    assert (response.status_code, error["param"]) == (400, param)
    assert says in error["message"]


async def test_the_first_unknown_field_ends_the_check(client):
    body = {"messages": [USER], **{f"key{i}": i for i in range(20_000)}}
    response = await client.post(CHAT, json=body)
    assert (response.status_code, response.json()["error"]["param"]) == (400, "key0")
