from __future__ import annotations

import json
from typing import Any

import httpx
import pytest

pytestmark = pytest.mark.anyio

HELLO = [{"role": "user", "content": "hello"}]
PROMPT = "<user>hello<assistant>"


async def chat(client: httpx.AsyncClient, **body: Any) -> dict[str, Any]:
    response = await client.post("/v1/chat/completions", json={"messages": HELLO, **body})
    assert response.status_code == 200, response.text
    return response.json()


async def chat_chunks(client: httpx.AsyncClient, **body: Any) -> list[dict[str, Any]]:
    body = {"messages": HELLO, "stream": True, **body}
    response = await client.post("/v1/chat/completions", json=body)
    assert response.headers["content-type"].startswith("text/event-stream")
    lines = [line for line in response.text.split("\n\n") if line]
    assert all(line.startswith("data: ") for line in lines)
    assert lines[-1] == "data: [DONE]"
    return [json.loads(line.removeprefix("data: ")) for line in lines[:-1]]


async def test_a_reply_has_openais_shape_and_its_guidance(client):
    reply = await chat(client)
    assert reply["object"] == "chat.completion"
    assert reply["id"].startswith("chatcmpl-")
    assert reply["model"] == "echo"
    assert reply["usage"] == {
        "prompt_tokens": len(PROMPT),
        "completion_tokens": len(PROMPT),
        "total_tokens": 2 * len(PROMPT),
        "prompt_tokens_details": {"cached_tokens": 2},
        "computed_tokens": 0,
    }
    (choice,) = reply["choices"]
    assert choice == {
        "index": 0,
        "message": {"role": "assistant", "content": PROMPT, "refusal": None},
        "logprobs": None,
        "finish_reason": "stop",
        "stop_reason": None,
        "guidance": {
            "kl": 0.25 * len(PROMPT),
            "mean_strength": 1.0,
            "value": {"kind": 0.5},
            "reward": {},
            "flips": 1,
        },
    }


async def test_without_a_limit_the_reply_may_fill_the_context(client, engine):
    await chat(client)
    assert engine.submitted[0].sampling.max_tokens == engine.info.max_model_len - len(PROMPT)


@pytest.mark.parametrize("name", ["max_tokens", "max_completion_tokens"])
async def test_both_names_of_the_limit_limit(client, name):
    reply = await chat(client, **{name: 3})
    assert reply["choices"][0]["message"]["content"] == PROMPT[:3]
    assert reply["choices"][0]["finish_reason"] == "length"


async def test_every_sampling_field_reaches_the_engine(client, engine):
    asked = {
        "temperature": 0.5,
        "top_p": 0.9,
        "top_k": 7,
        "min_p": 0.1,
        "n": 2,
        "seed": 11,
        "presence_penalty": 0.5,
        "frequency_penalty": -0.5,
        "repetition_penalty": 1.5,
        "ignore_eos": True,
    }
    await chat(client, **asked, stop="x", logit_bias={"5": -100}, logprobs=True, top_logprobs=3)
    sampling = engine.submitted[0].sampling
    assert {name: getattr(sampling, name) for name in asked} == asked
    assert sampling.stop == ("x",)
    assert sampling.logit_bias == ((5, -100.0),)
    assert sampling.logprobs == 3


async def test_null_means_left_out(client, engine):
    names = ["temperature", "top_p", "n", "stop", "seed", "max_tokens", "guidance", "stream", "tools", "user"]
    await chat(client)
    await chat(client, **dict.fromkeys(names))
    assert engine.submitted[0].sampling == engine.submitted[1].sampling
    assert engine.submitted[0].guidance == engine.submitted[1].guidance


async def test_values_that_ask_for_nothing_are_accepted(client):
    await chat(
        client,
        tools=[],
        tool_choice="none",
        response_format={"type": "text"},
        store=False,
        user="u-1",
        modalities=["text"],
    )


async def test_messages_may_come_in_parts_and_a_reply_may_be_sent_back(client, engine):
    answered = (await chat(client))["choices"][0]["message"]
    parts = [{"type": "text", "text": "one"}, {"type": "text", "text": "two"}]
    messages = [{"role": "developer", "content": "be brief"}, answered, {"role": "user", "content": parts}]
    await chat(client, messages=messages)
    rendered = engine.tokenizer.decode(engine.submitted[1].prompt_token_ids)
    assert rendered == f"<system>be brief<assistant>{PROMPT}<user>one\ntwo<assistant>"


async def test_choices_come_in_order(client):
    reply = await chat(client, n=3)
    assert [c["message"]["content"] for c in reply["choices"]] == [PROMPT, PROMPT[1:], PROMPT[2:]]
    assert [c["index"] for c in reply["choices"]] == [0, 1, 2]


async def test_logprobs_have_openais_shape_with_bytes(client):
    messages = [{"role": "user", "content": "é"}]
    reply = await chat(client, messages=messages, logprobs=True, top_logprobs=2)
    entries = reply["choices"][0]["logprobs"]["content"]
    assert bytes(b for entry in entries for b in entry["bytes"]).decode() == "<user>é<assistant>"
    first, half = entries[0], entries[6]
    assert (first["token"], first["logprob"], first["bytes"]) == ("<", -1.0, [ord("<")])
    assert [top["logprob"] for top in first["top_logprobs"]] == [-1.0, -2.0]
    assert (half["token"], half["bytes"]) == ("bytes:\\xc3", [0xC3])


async def test_a_stream_says_what_the_whole_reply_says(client):
    whole = (await chat(client, n=2, logprobs=True, top_logprobs=1, guidance={"trace": True}))["choices"]
    chunks = await chat_chunks(client, n=2, logprobs=True, top_logprobs=1, guidance={"trace": True})
    assert {chunk["object"] for chunk in chunks} == {"chat.completion.chunk"}
    assert len({chunk["id"] for chunk in chunks}) == 1
    for index in (0, 1):
        parts = [c for chunk in chunks for c in chunk["choices"] if c["index"] == index]
        assert parts[0]["delta"] == {"role": "assistant", "content": ""}
        text = "".join(part["delta"].get("content", "") for part in parts)
        assert text == whole[index]["message"]["content"]
        logprobs = [entry for part in parts if part["logprobs"] for entry in part["logprobs"]["content"]]
        assert logprobs == whole[index]["logprobs"]["content"]
        trace = [entry for part in parts[1:-1] for entry in part["guidance"]["trace"]]
        assert parts[-1]["guidance"] | {"trace": trace} == whole[index]["guidance"]
        assert [part["finish_reason"] for part in parts] == [None] * (len(parts) - 1) + ["stop"]


async def test_a_stream_without_trace_carries_guidance_in_the_last_chunk_alone(client):
    chunks = await chat_chunks(client)
    assert ["guidance" in chunk["choices"][0] for chunk in chunks] == [False] * (len(chunks) - 1) + [True]


async def test_usage_is_streamed_last_and_only_when_asked(client):
    assert all("usage" not in chunk for chunk in await chat_chunks(client))
    chunks = await chat_chunks(client, stream_options={"include_usage": True})
    assert chunks[-1]["choices"] == []
    assert chunks[-1]["usage"]["completion_tokens"] == len(PROMPT)
    assert all(chunk["usage"] is None for chunk in chunks[:-1])


async def test_a_trace_has_one_entry_per_token(client):
    guidance = {"strength": 2, "heads": {"kind": 1}, "trace": True}
    choice = (await chat(client, guidance=guidance))["choices"][0]
    trace = choice["guidance"]["trace"]
    assert "".join(entry["token"] for entry in trace) == choice["message"]["content"]
    assert trace[1] == {
        "token": "u",
        "value": {"kind": 0.1},
        "kl": 0.25,
        "strength": 2.0,
        "entropy": 2.0,
        "logprob": -1.0,
        "base_logprob": -1.25,
        "flip": False,
        "base_top": [
            {"token": "b", "logprob": -0.5},
            {"token": "c", "logprob": -1.5},
            {"token": "d", "logprob": -9999.0},
        ],
    }
