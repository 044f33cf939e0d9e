"""Fields of vLLM's requests beside OpenAI's, what they make of a prompt and a reply, and the request's id."""

from __future__ import annotations

import json
from typing import Any

import openai
import pytest
from tokenizers import AddedToken

from trimtab.server.api.app import create_app
from trimtab.server.api.readings.reasoning import ReasoningSplitter, ReasoningTags
from trimtab.server.engine.reasoning import Tags
from trimtab.server.engine.request import Delta, TokenRecord

pytestmark = pytest.mark.anyio
CHAT = "/v1/chat/completions"
USER = {"role": "user", "content": "hi"}


async def prompt_of(client: Any, engine: Any, path: str = CHAT, **body: Any) -> str:
    response = await client.post(path, json=body)
    assert response.status_code == 200, response.text
    return engine.tokenizer.decode(engine.submitted[-1].prompt_token_ids)


async def test_sampling_fields_reach_the_engine(client, engine):
    fields = {"min_tokens": 2, "stop_token_ids": [7, 8], "include_stop_str_in_output": True}
    await prompt_of(client, engine, messages=[USER], bad_words=["no", " no"], **fields)
    sampling = engine.submitted[0].sampling
    assert (sampling.min_tokens, sampling.stop_token_ids) == (2, (7, 8))
    assert sampling.include_stop_str_in_output
    encode = engine.tokenizer.encode
    assert sampling.bad_words == (tuple(encode("no")), tuple(encode(" no")))


async def test_a_prompt_keeps_its_last_tokens_where_it_is_truncated(client, engine):
    path, limit = "/v1/completions", engine.info.max_model_len
    assert await prompt_of(client, engine, path, prompt="abcdef", truncate_prompt_tokens=2) == "ef"
    long = "a" * limit + "bcd"
    kept = await prompt_of(client, engine, path, prompt=long, truncate_prompt_tokens=-1, max_tokens=5)
    assert kept == long[-(limit - 5) :]
    echo = {"prompt": "abcdef", "truncate_prompt_tokens": 2, "echo": True, "max_tokens": 1}
    assert (await client.post(path, json=echo)).json()["choices"][0]["text"] == "efe"
    assert await prompt_of(client, engine, messages=[USER], truncate_prompt_tokens=3) == "nt>"


async def test_a_conversation_is_written_as_it_is_asked_for(client, engine):
    messages = [USER, {"role": "assistant", "content": "yo "}]
    assert await prompt_of(client, engine, messages=messages) == "<user>hi<assistant>yo <assistant>"
    for more in ({"continue_final_message": True}, {"add_generation_prompt": False}):
        assert await prompt_of(client, engine, messages=messages, **more) == "<user>hi<assistant>yo "
    asked = {"messages": messages, "continue_final_message": True}
    found = (await client.post("/tokenize", json=asked)).json()["tokens"]
    assert engine.tokenizer.decode(found) == "<user>hi<assistant>yo "


async def test_a_message_that_the_template_trims_and_closes_goes_on_behind_its_last_word(
    make_engine, make_client
):
    template = "{% for m in messages %}[{{ m.content | trim }}]</s>{% endfor %}"
    engine = make_engine(chat_template=template)
    async with make_client(engine) as client:
        messages = [USER, {"role": "assistant", "content": " yo "}]
        assert (
            await prompt_of(client, engine, messages=messages, continue_final_message=True) == "[hi]</s>[yo"
        )


async def test_a_template_reads_what_it_is_given_besides(make_engine, make_client):
    template = (
        "{{ tone }}-{{ reasoning_effort }}-{{ messages[0].reasoning_content }}-{{ messages[0].content }}"
    )
    engine = make_engine(chat_template=template)
    async with make_client(engine) as client:
        message = {"role": "assistant", "content": "hi", "reasoning_content": "why"}
        more = {"chat_template_kwargs": {"tone": "dry", "bos_token": "x"}, "reasoning_effort": "low"}
        assert await prompt_of(client, engine, messages=[message], **more) == "dry-low-why-hi"


@pytest.mark.parametrize(
    ("body", "param", "says"),
    [
        ({"min_tokens": 99, "max_tokens": 5}, "min_tokens", "0 to what max_tokens is, 5"),
        ({"stop_token_ids": [257]}, "stop_token_ids", "0…256"),
        ({"bad_words": [""]}, "bad_words", "1…256 characters"),
        ({"bad_words": ["a"] * 65}, "bad_words", "at most 64"),
        ({"truncate_prompt_tokens": 0}, "truncate_prompt_tokens", "1…100"),
        ({"truncate_prompt_tokens": 2**70}, "truncate_prompt_tokens", "1…100"),
        (
            {"add_generation_prompt": True, "continue_final_message": True},
            "continue_final_message",
            "give one",
        ),
        ({"chat_template_kwargs": {"tools": []}}, "chat_template_kwargs.tools", "a field of its own"),
        ({"min_tokens": 1, "guided_regex": "a+"}, "min_tokens", "within a grammar"),
        ({"bad_words": ["a"], "guided_regex": "a+"}, "bad_words", "within a grammar"),
    ],
)
async def test_what_cannot_be_done_is_refused(client, engine, body, param, says):
    response = await client.post(CHAT, json={"messages": [USER], **body})
    error = response.json()["error"]
    assert (response.status_code, error["param"]) == (400, param)
    assert says in error["message"]


@pytest.mark.parametrize(
    ("sent", "is_kept"),
    [("abc-1", True), (None, False), ("", False), ("x" * 129, False), ("\u00e9", False), ("a\tb", False)],
)
async def test_every_answer_has_the_id_of_its_request(client, sent, is_kept):
    headers = {} if sent is None else {"X-Request-Id": sent.encode()}
    for path in ("/v1/models", "/nowhere", "/health"):
        found = (await client.get(path, headers=headers)).headers["x-request-id"]
        assert found == sent if is_kept else found.startswith("req-")


async def test_usage_is_told_as_it_grows_where_it_is_asked_for(client):
    options = {"include_usage": True, "continuous_usage_stats": True}
    body = {"messages": [USER], "max_tokens": 3, "stream": True, "stream_options": options}
    text = (await client.post(CHAT, json=body)).text
    usages = [json.loads(line[6:])["usage"] for line in text.split("\n\n")[:-2]]
    assert [usage["completion_tokens"] for usage in usages] == [0, 1, 2, 3, 3, 3]
    assert {usage["prompt_tokens"] for usage in usages} == {len("<user>hi<assistant>")}


def test_reasoning_is_told_apart_from_the_answer_whole_and_streamed(make_engine, serve):
    engine = make_engine(chat_template="{{ messages[0].content }}")
    engine.tokenizer.add_tokens([AddedToken("<think>"), AddedToken("</think>")])
    url = serve(create_app(engine, engine.tokenizer))
    with openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0) as client:
        ask: dict[str, Any] = {
            "model": "echo",
            "messages": [{"role": "user", "content": "<think>ab</think>cd"}],
            "logprobs": True,
        }
        engine.info = type(engine.info)(**{**vars_of(engine.info), "vocab_size": 259})
        choice = client.chat.completions.create(**ask).choices[0]
        assert (choice.message.reasoning_content, choice.message.content) == ("ab", "cd")
        assert len(choice.logprobs.content) == 6
        deltas = [chunk.choices[0].delta for chunk in client.chat.completions.create(**ask, stream=True)]
    assert "".join(getattr(delta, "reasoning_content", None) or "" for delta in deltas) == "ab"
    assert "".join(delta.content or "" for delta in deltas) == "cd"


def vars_of(info: Any) -> dict[str, Any]:
    return {name: getattr(info, name) for name in type(info).__slots__}


@pytest.mark.parametrize("lag", [0, 1, 3, 100])
@pytest.mark.parametrize("are_special", [True, False])
@pytest.mark.parametrize("reasons", [True, False])
def test_text_that_comes_behind_its_tokens_is_split_where_the_tags_are(lag, are_special, reasons):
    tags = {1: "" if are_special else "<t>", 2: "" if are_special else "</t>"}
    pieces = [(2, tags[2])] if reasons else []
    pieces += [(9, "a b"), (1, tags[1]), (9, "c"), (9, "d"), (2, tags[2]), (2, tags[2]), (9, "e"), (9, "<t>")]
    pieces = [(9, "why"), *pieces] if reasons else pieces
    whole, places = "", []
    for _, text in pieces:
        places.append(len(whole))
        whole += text
    splitter = ReasoningSplitter(
        ReasoningTags(Tags(1, 2), {i: len(text) for i, text in tags.items()}), reasons
    )
    thought, answer, found, told = "", "", [], 0
    for at, (token_id, text) in enumerate(pieces):
        upto = len(whole) if at == len(pieces) - 1 else max(places[at] + len(text) - lag, told)
        event = Delta("r", 0, whole[told:upto], (TokenRecord(token_id, -1.0),), (places[at],))
        told = upto
        more, said = splitter.split(event)
        thought, answer = thought + more, answer + said.text
        found += zip([token.token_id for token in said.tokens], said.offsets, strict=True)
    assert (thought, answer) == ("why" * reasons + "cd", "a be<t>")
    assert found == [(9, 0), (9, 3), (9, 4)]
