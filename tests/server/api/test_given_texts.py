"""Texts that are given: scored, turned to tokens and back, as vLLM's clients ask for them."""

from __future__ import annotations

from importlib.metadata import version

import pytest

pytestmark = pytest.mark.anyio

USER, REPLY = {"role": "user", "content": "hi"}, {"role": "assistant", "content": "yo"}


async def test_a_text_is_turned_to_tokens_and_back(client, engine):
    body = {"prompt": "héy", "return_token_strs": True, "model": "echo", "add_special_tokens": False}
    found = (await client.post("/tokenize", json=body)).json()
    assert found["tokens"] == engine.tokenizer.encode("héy")
    assert (found["count"], found["max_model_len"]) == (4, engine.info.max_model_len)
    assert found["token_strs"] == ["h", "bytes:\\xc3", "bytes:\\xa9", "y"]
    back = await client.post("/detokenize", json={"tokens": found["tokens"]})
    assert back.json() == {"prompt": "héy"}


async def test_a_chat_is_turned_to_the_tokens_that_it_is_served_with(client, engine):
    found = (await client.post("/tokenize", json={"messages": [USER]})).json()
    await client.post("/v1/chat/completions", json={"messages": [USER]})
    assert tuple(found["tokens"]) == engine.submitted[0].prompt_token_ids
    assert found["token_strs"] is None


async def test_a_reply_is_scored_as_it_would_be_served(client, engine):
    body = {"messages": [USER, REPLY], "guidance": {"strength": 2, "heads": {"kind": 1}}}
    found = (await client.post("/v1/score", json=body)).json()
    (request,) = engine.submitted
    assert engine.tokenizer.decode(request.prompt_token_ids) == "<user>hi<assistant>"
    assert request.given == (*engine.tokenizer.encode("yo"), 256)
    assert request.guidance.strength == 2
    assert [token["token"] for token in found["tokens"]] == ["y", "o", "<eos>"]
    assert found["tokens"][1]["value"] == {"kind": 0.1}
    assert (found["object"], found["model"], found["value"]) == ("score", "echo", {"kind": 0.5})
    assert (await client.post("/v1/score", json={"prompt": "a", "completion": "b"})).status_code == 200
    assert engine.submitted[1].prompt_token_ids == tuple(engine.tokenizer.encode("a"))


@pytest.mark.parametrize(
    ("path", "body", "param", "says"),
    [
        ("/v1/score", {"messages": [USER]}, "messages", "at least 2"),
        ("/v1/score", {"messages": [REPLY, USER]}, "messages[1].role", "the reply that is scored"),
        ("/v1/score", {"prompt": "a"}, "messages", "give messages, or prompt and completion"),
        (
            "/v1/score",
            {"messages": [USER, REPLY], "guidance": {"max_kl": 1}},
            "guidance.max_kl",
            "is for draws",
        ),
        (
            "/v1/score",
            {"messages": [USER, {**REPLY, "content": "a" * 90}]},
            "messages",
            "maximum context length",
        ),
        ("/v1/score", {"messages": [USER, REPLY], "temperature": 0}, "temperature", "unknown field"),
        ("/tokenize", {}, "prompt", "give prompt or messages"),
        ("/detokenize", {"tokens": [257]}, "tokens", "0…256"),
        ("/detokenize", {"tokens": [2**70]}, "tokens", "0…256"),
        ("/detokenize", {"tokens": ["a"]}, "tokens[0]", "integer"),
    ],
)
async def test_bad_input_is_named(client, path, body, param, says):
    response = await client.post(path, json=body)
    error = response.json()["error"]
    assert (response.status_code, error["param"]) == (400, param)
    assert says in error["message"]


async def test_what_is_asked_of_a_server_by_its_machinery(client, engine):
    assert (await client.get("/version")).json() == {"version": version("trimtab")}
    assert [(await client.request(method, "/ping")).status_code for method in ("GET", "POST")] == [200, 200]
    info = (await client.get("/tokenizer_info")).json()
    assert (info["eos_token"], info["chat_template"]) == ("<eos>", engine.tokenizer.chat_template)
    engine.status = "stopping"
    assert (await client.get("/ping")).status_code == 503
    assert (await client.post("/tokenize", json={"prompt": "a"})).status_code == 503
