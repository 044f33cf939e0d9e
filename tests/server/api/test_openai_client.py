"""The official client, against a real server."""

from __future__ import annotations

import openai
import pytest

from trimtab.server.api.app import create_app
from trimtab.server.api.config import ApiConfig

MESSAGES = [{"role": "user", "content": "hello"}]
PROMPT = "<user>hello<assistant>"


@pytest.fixture
def openai_client(engine, serve):
    url = serve(create_app(engine, engine.tokenizer, ApiConfig(default_head="kind")))
    with openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0) as client:
        yield client


def test_a_chat_reply_with_guidance(openai_client, engine):
    reply = openai_client.chat.completions.create(
        model="echo",
        messages=MESSAGES,
        logprobs=True,
        top_logprobs=1,
        extra_body={"guidance": {"strength": 2, "heads": {"kind": 1}, "trace": True}},
    )
    choice = reply.choices[0]
    assert choice.message.content == PROMPT
    assert choice.logprobs.content[0].top_logprobs[0].bytes == [ord("<")]
    assert choice.guidance["mean_strength"] == 2
    assert len(choice.guidance["trace"]) == len(PROMPT)
    assert reply.usage.total_tokens == 2 * len(PROMPT)
    assert engine.submitted[0].guidance.strength == 2


def test_a_streamed_chat_reply_with_guidance(openai_client):
    stream = openai_client.chat.completions.create(
        model="echo",
        messages=MESSAGES,
        stream=True,
        stream_options={"include_usage": True},
        extra_body={"guidance": {"strength": -1, "trace": True}},
    )
    *chunks, usage = stream
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == PROMPT
    assert chunks[0].choices[0].delta.role == "assistant"
    assert chunks[1].choices[0].guidance["trace"][0]["token"] == "<"
    assert chunks[-1].choices[0].finish_reason == "stop"
    assert chunks[-1].choices[0].guidance["mean_strength"] == -1
    assert usage.usage.completion_tokens == len(PROMPT)


def test_a_reply_can_be_sent_back_as_a_message(openai_client):
    first = openai_client.chat.completions.create(model="echo", messages=MESSAGES, max_tokens=6)
    messages = [*MESSAGES, first.choices[0].message, {"role": "user", "content": "more"}]
    second = openai_client.chat.completions.create(model="echo", messages=messages)
    assert second.choices[0].message.content == "<user>hello<assistant><user><user>more<assistant>"


@pytest.mark.parametrize("stream", [False, True])
def test_a_completion(openai_client, stream):
    reply = openai_client.completions.create(model="echo", prompt=["abc", "de"], logprobs=1, stream=stream)
    texts = ["", ""]
    for part in reply if stream else [reply]:
        for choice in part.choices:
            texts[choice.index] += choice.text
    assert texts == ["abc", "de"]


def test_models_are_listed_and_found(openai_client):
    assert [model.id for model in openai_client.models.list()] == ["echo"]
    assert openai_client.models.retrieve("echo").id == "echo"


def test_errors_arrive_as_the_clients_exceptions(openai_client, engine):
    create = openai_client.chat.completions.create
    with pytest.raises(openai.BadRequestError, match="no such head") as bad:
        create(model="echo", messages=MESSAGES, extra_body={"guidance": {"heads": {"bold": 1}}})
    assert bad.value.param == "guidance.heads.bold"
    with pytest.raises(openai.NotFoundError) as missing:
        create(model="gpt-4", messages=MESSAGES)
    assert missing.value.code == "model_not_found"
    engine.fail_after = 1
    with pytest.raises(openai.APIError, match="on fire"):
        list(create(model="echo", messages=MESSAGES, stream=True))
    engine.fail_after = None
    assert create(model="echo", messages=MESSAGES).choices[0].message.content == PROMPT
