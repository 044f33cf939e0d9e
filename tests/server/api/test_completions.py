from __future__ import annotations

import json
from typing import Any

import httpx
import pytest

pytestmark = pytest.mark.anyio


async def complete(client: httpx.AsyncClient, **body: Any) -> dict[str, Any]:
    response = await client.post("/v1/completions", json=body)
    assert response.status_code == 200, response.text
    return response.json()


async def stream(client: httpx.AsyncClient, **body: Any) -> list[dict[str, Any]]:
    response = await client.post("/v1/completions", json={**body, "stream": True})
    lines = [line.removeprefix("data: ") for line in response.text.split("\n\n") if line]
    assert lines[-1] == "[DONE]"
    return [json.loads(line) for line in lines[:-1]]


async def test_a_reply_has_openais_shape_and_sixteen_tokens_unless_asked(client):
    reply = await complete(client, prompt="abcdefghijklmnopqrstuvwxyz")
    assert reply["object"] == "text_completion"
    (choice,) = reply["choices"]
    assert choice["text"] == "abcdefghijklmnop"
    assert choice["finish_reason"] == "length"
    assert choice["logprobs"] is None
    assert choice["guidance"]["mean_strength"] == 1.0
    assert reply["usage"]["completion_tokens"] == 16


async def test_the_default_limit_shrinks_to_the_room_that_is_left(client, engine):
    await complete(client, prompt="a" * (engine.info.max_model_len - 3))
    assert engine.submitted[0].sampling.max_tokens == 3


@pytest.mark.parametrize("prompt", ["ab", [64, 65], ["ab"], [[64, 65]], [[64, 65], "ab"]])
async def test_all_forms_of_a_prompt_mean_the_same(client, engine, prompt):
    await complete(client, prompt=prompt)
    ids = tuple(engine.tokenizer.encode("ab"))
    assert {request.prompt_token_ids for request in engine.submitted} == {ids}


async def test_several_prompts_come_back_in_order_whole_and_streamed(client):
    body = {"prompt": ["abc", "def"], "n": 2}
    whole = await complete(client, **body)
    expected = ["abc", "bc", "def", "ef"]
    assert [choice["text"] for choice in whole["choices"]] == expected
    assert whole["usage"]["prompt_tokens"] == 6
    texts = [""] * 4
    for chunk in await stream(client, **body):
        for choice in chunk["choices"]:
            texts[choice["index"]] += choice["text"]
    assert texts == expected


async def test_logprobs_have_the_older_shape_whole_and_streamed(client):
    body = {"prompt": "abc", "logprobs": 2}
    logprobs = (await complete(client, **body))["choices"][0]["logprobs"]
    assert logprobs == {
        "tokens": ["a", "b", "c"],
        "token_logprobs": [-1.0, -1.0, -1.0],
        "top_logprobs": [{"a": -1.0, "b": -2.0}, {"b": -1.0, "c": -2.0}, {"c": -1.0, "d": -2.0}],
        "text_offset": [0, 1, 2],
    }
    parts = [chunk["choices"][0]["logprobs"] for chunk in await stream(client, **body)]
    assert parts[-1] is None
    assert [offset for part in parts[:-1] for offset in part["text_offset"]] == [0, 1, 2]
    assert parts[0]["top_logprobs"] == [{"a": -1.0, "b": -2.0}]


async def test_when_one_prompt_is_refused_the_others_do_not_run_on(client, engine):
    response = await client.post("/v1/completions", json={"prompt": [[64, 65], [255]]})
    assert response.status_code == 400
    assert engine.aborted == [engine.submitted[0].request_id]
