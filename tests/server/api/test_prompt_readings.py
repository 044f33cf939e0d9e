"""Prompts told of: `echo`, `prompt_logprobs` and no tokens at all, as lm-eval asks for them."""

from __future__ import annotations

from typing import Any

import openai
import pytest

from trimtab.server.api.app import create_app

pytestmark = pytest.mark.anyio
COLUMNS = ("tokens", "token_logprobs", "top_logprobs", "text_offset")


async def complete(client: Any, **body: Any) -> dict[str, Any]:
    response = await client.post("/v1/completions", json=body)
    assert response.status_code == 200, response.text
    return response.json()


@pytest.mark.parametrize("prompt", ["abc", [64, 65, 66]])
async def test_an_echo_is_the_prompt_then_the_reply_with_offsets_in_both(client, prompt):
    reply = await complete(client, prompt=prompt, echo=True, logprobs=1, max_tokens=2)
    (choice,) = reply["choices"]
    assert choice["text"] == "abcab"
    assert choice["logprobs"] == {
        "tokens": ["a", "b", "c", "a", "b"],
        "token_logprobs": [None, -1.0, -1.0, -1.0, -1.0],
        "top_logprobs": [None, {"b": -1.0}, {"c": -1.0}, {"a": -1.0}, {"b": -1.0}],
        "text_offset": [0, 1, 2, 3, 4],
    }
    assert (reply["usage"]["prompt_tokens"], reply["usage"]["completion_tokens"]) == (3, 2)


async def test_without_a_token_of_a_reply_there_are_the_prompts_alone(client, engine):
    reply = await complete(client, prompt=["abc", "d"], echo=True, logprobs=0, max_tokens=0)
    assert [choice["text"] for choice in reply["choices"]] == ["abc", "d"]
    assert [choice["finish_reason"] for choice in reply["choices"]] == ["length", "length"]
    assert [choice["logprobs"]["token_logprobs"] for choice in reply["choices"]] == [
        [None, -1.0, -1.0],
        [None],
    ]
    assert (reply["usage"]["prompt_tokens"], reply["usage"]["completion_tokens"]) == (4, 0)
    assert [request.given for request in engine.submitted] == [(65, 66)]


async def test_an_echo_without_log_probabilities_reads_nothing(client, engine):
    reply = await complete(client, prompt=["ab", [64, 65]], echo=True, n=2, max_tokens=1)
    assert [choice["text"] for choice in reply["choices"]] == ["aba", "abb", "aba", "abb"]
    assert not any(request.given for request in engine.submitted)
    alone = await complete(client, prompt=[64], echo=True, max_tokens=0)
    assert alone["choices"][0]["text"] == "a"


async def test_prompt_logprobs_have_vllms_shape_in_completions_and_chats(client):
    reply = await complete(client, prompt="ab", prompt_logprobs=2, logprobs=0, max_tokens=1)
    b = {"logprob": -1.0, "rank": 1, "decoded_token": "b"}
    c = {"logprob": -2.0, "rank": 2, "decoded_token": "c"}
    assert reply["choices"][0]["prompt_logprobs"] == [None, {"65": b, "66": c}]
    assert reply["choices"][0]["text"] == "a"
    body = {"messages": [{"role": "user", "content": "b"}], "prompt_logprobs": 0, "max_tokens": 1}
    chat = (await client.post("/v1/chat/completions", json=body)).json()
    assert len(chat["prompt_logprobs"]) == chat["usage"]["prompt_tokens"]
    assert chat["prompt_logprobs"][6] == {"65": {"logprob": -1.0, "rank": None, "decoded_token": "b"}}


@pytest.mark.parametrize(
    ("body", "param", "says"),
    [
        ({"max_tokens": 0}, "max_tokens", "0 with echo or prompt_logprobs"),
        ({"max_tokens": 0, "echo": True, "n": 2}, "n", "max_tokens is 0"),
        ({"max_tokens": 0, "echo": True, "stream": True}, "stream", "max_tokens is 0"),
        ({"prompt_logprobs": 0, "stream": True}, "prompt_logprobs", "streams"),
        ({"prompt_logprobs": 21}, "prompt_logprobs", "0…20"),
        ({"echo": True, "logprobs": 21}, "logprobs", "0…20"),
        ({"echo": True, "max_tokens": 0, "prompt": [300]}, "prompt", "0…256"),
        ({"echo": True, "max_tokens": 0, "prompt": [2**63]}, "prompt", "0…256"),
        ({"echo": True, "max_tokens": 0, "prompt": ""}, "prompt", "no tokens"),
        (
            {"echo": True, "max_tokens": 0, "logprobs": 1, "prompt": "a" * 101},
            "prompt",
            "maximum context length",
        ),
        ({"echo": True, "logprobs": 1, "guidance": {"max_kl": 0.1}}, "guidance.max_kl", "is for draws"),
    ],
)
async def test_what_cannot_be_told_is_refused(client, engine, body, param, says):
    response = await client.post("/v1/completions", json={"prompt": "abc", **body})
    error = response.json()["error"]
    assert (response.status_code, error["param"]) == (400, param)
    assert says in error["message"]
    assert engine.submitted == []


def test_a_streamed_echo_begins_with_the_prompt(engine, serve):
    url = serve(create_app(engine, engine.tokenizer))
    with openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0) as client:
        whole = client.completions.create(model="echo", prompt=["abc", "de"], echo=True, logprobs=1)
        stream = client.completions.create(
            model="echo", prompt=["abc", "de"], echo=True, logprobs=1, stream=True
        )
        texts, columns = ["", ""], [{name: [] for name in COLUMNS} for _ in range(2)]
        for chunk in stream:
            for choice in chunk.choices:
                texts[choice.index] += choice.text
                for name in COLUMNS:
                    columns[choice.index][name] += getattr(choice.logprobs, name, None) or []
    assert texts == [choice.text for choice in whole.choices] == ["abcabc", "dede"]
    assert columns == [choice.logprobs.model_dump() for choice in whole.choices]
