"""Responses: OpenAI's typed events and items, over what chats do."""

from __future__ import annotations

import json
from itertools import groupby
from typing import Any, get_args

import openai
import pydantic
import pytest
from openai.types.responses import Response, ResponseStreamEvent

from trimtab.server.api import neutral
from trimtab.server.api.app import create_app
from trimtab.server.api.schemas.responses import ResponseReply

pytestmark = pytest.mark.anyio

RESPONSES = "/v1/responses"
ASKED = "Is it warm in Rome?"
ROME = '{"city": "Rome"}'
CALL = f'<tool_call>\n{{"name": "weather", "arguments": {ROME}}}\n</tool_call>'
CITY = {"type": "object", "properties": {"city": {"enum": ["Rome", "Oslo"]}}, "required": ["city"]}
WEATHER = {"type": "function", "name": "weather", "description": "of a city", "parameters": CITY}
EVENTS = {
    get_args(kind.model_fields["type"].annotation)[0]: kind
    for kind in get_args(get_args(ResponseStreamEvent)[0])
}
ENDS = ("response.completed", "response.incomplete", "response.failed", "error")


def allowed(*names, mode="auto"):
    tools = [{"type": "function", "name": name} for name in names]
    return {"type": "allowed_tools", "mode": mode, "tools": tools}


async def whole(client, **body):
    response = await client.post(RESPONSES, json={"input": ASKED, **body})
    assert response.status_code == 200, response.text
    Response.model_validate_json(response.content)
    ResponseReply.model_validate(response.json(), strict=True)
    return response.json()


async def streamed(client, **body):
    """The events, each as OpenAI's client declares it, one end among them, and that last."""
    response = await client.post(RESPONSES, json={"input": ASKED, "stream": True, **body})
    assert response.status_code == 200, response.text
    assert response.headers["content-type"].startswith("text/event-stream")
    events = []
    for block in response.text.removesuffix("\n\n").split("\n\n"):
        name, data = block.split("\n")
        event = json.loads(data.removeprefix("data: "))
        assert name == f"event: {event['type']}"
        EVENTS[event["type"]].model_validate(event)
        events.append(event)
    assert [event["sequence_number"] for event in events] == list(range(len(events)))
    assert [event["type"] for event in events[:2]] == ["response.created", "response.in_progress"]
    assert [event["type"] in ENDS for event in events] == [False] * (len(events) - 1) + [True]
    assert events[0]["response"]["output"] == []
    return events


def kinds(events):
    """Their types, those that repeat once."""
    return [kind.removeprefix("response.") for kind, _ in groupby(event["type"] for event in events)]


def put_together(events):
    """The items that the events in between add up to."""
    items: list[Any] = []
    texts: dict[str, str] = {}
    for event in events[2:-1]:
        kind = event["type"].removeprefix("response.")
        assert event["output_index"] == len(items) - (kind != "output_item.added")
        if kind == "output_item.added":
            assert event["item"]["status"] == "in_progress"
            items.append(event["item"])
            texts[event["item"]["id"]] = ""
        elif kind == "output_item.done":
            whole_item = event["item"]
            said = whole_item["arguments"] if "arguments" in whole_item else whole_item["content"][0]["text"]
            assert (whole_item["id"], said) == (items[-1]["id"], texts[items[-1]["id"]])
            items[-1] = whole_item
        else:
            assert event["item_id"] == items[-1]["id"]
            if kind.endswith(".delta"):
                texts[event["item_id"]] += event["delta"]
            elif kind.endswith("text.done") or kind == "function_call_arguments.done":
                assert event.get("text", event.get("arguments")) == texts[event["item_id"]]
    return items


def without_names(response):
    """But for ids and times."""
    found = {name: value for name, value in response.items() if name not in ("id", "created_at")}
    found.pop("completed_at", None)
    found["output"] = [
        {name: value for name, value in item.items() if name not in ("id", "call_id")}
        for item in response["output"]
    ]
    return found


TEXT_EVENTS = [
    "output_item.added",
    "content_part.added",
    "output_text.delta",
    "output_text.done",
    "content_part.done",
    "output_item.done",
]
CALL_EVENTS = [
    "output_item.added",
    "function_call_arguments.delta",
    "function_call_arguments.done",
    "output_item.done",
]


async def test_a_text_is_the_same_streamed_and_whole(client, engine):
    fields = {"instructions": "Be brief.", "temperature": 0.5, "top_p": 0.9, "seed": 3}
    fields |= {"input": "hello", "max_output_tokens": 50}
    reply = await whole(client, **fields)
    prompt = "<system>Be brief.<user>hello<assistant>"
    [message] = reply["output"]
    assert (message["role"], message["content"][0]["text"]) == ("assistant", prompt)
    assert (reply["status"], reply["error"], reply["incomplete_details"]) == ("completed", None, None)
    assert (reply["temperature"], reply["top_p"], reply["tool_choice"]) == (0.5, 0.9, "auto")
    assert reply["instructions"] == "Be brief." and reply["text"] == {"format": {"type": "text"}}
    usage = reply["usage"]
    assert (usage["input_tokens"], usage["output_tokens"]) == (len(prompt), len(prompt))
    assert usage["input_tokens_details"]["cached_tokens"] == 2
    events = await streamed(client, stream_options={"include_usage": True}, **fields)
    assert kinds(events) == ["created", "in_progress", *TEXT_EVENTS, "completed"]
    assert put_together(events) == events[-1]["response"]["output"]
    assert without_names(events[-1]["response"]) == without_names(reply)
    first, second = (request.sampling for request in engine.submitted)
    assert first == second and (first.seed, first.max_tokens) == (3, 50)


async def test_guidance_is_told_with_the_response_and_its_trace_with_the_text(client, engine):
    guidance = {"strength": 2, "heads": {"kind": 1}, "trace": True}
    reply = await whole(client, guidance=guidance)
    assert engine.submitted[0].guidance.strength == 2
    assert reply["guidance"]["mean_strength"] == 2 and reply["guidance"]["value"] == {"kind": 0.5}
    assert len(reply["guidance"]["trace"]) == reply["usage"]["output_tokens"]
    events = await streamed(client, guidance=guidance)
    told = [
        entry for event in events if "delta" in event for entry in event.get("guidance", {}).get("trace", [])
    ]
    assert told == reply["guidance"]["trace"] == events[-1]["response"]["guidance"]["trace"]


@pytest.mark.parametrize("template", ["hermes", "llama3_json"])
async def test_words_and_calls_are_items_in_their_order(make_scripted, make_client, template):
    said = f"Let me see.\n\n{CALL}\n{CALL}" if template == "hermes" else CALL.splitlines()[1]
    engine = make_scripted(
        said.replace("arguments", "parameters" if template != "hermes" else "arguments"), template
    )
    async with make_client(engine) as client:
        reply = await whole(client, tools=[WEATHER])
        events = await streamed(client, tools=[WEATHER])
    calls = [item for item in reply["output"] if item["type"] == "function_call"]
    assert [(call["name"], call["arguments"]) for call in calls] == [("weather", ROME)] * len(calls)
    assert len({call["call_id"] for call in calls}) == len(calls) == (2 if template == "hermes" else 1)
    words = [item["content"][0]["text"] for item in reply["output"][: -len(calls)]]
    assert words == (["Let me see."] if template == "hermes" else [])
    assert kinds(events)[2:-1] == TEXT_EVENTS * len(words) + CALL_EVENTS * len(calls)
    assert put_together(events) == events[-1]["response"]["output"]
    assert without_names(events[-1]["response"]) == without_names(reply)
    assert reply["tools"] == [WEATHER | {"strict": None}] and reply["parallel_tool_calls"] is True


@pytest.mark.parametrize("said", ["Let me see, then.", CALL])
async def test_a_reply_that_is_cut_is_incomplete_and_so_is_its_last_item(make_scripted, make_client, said):
    async with make_client(make_scripted(said)) as client:
        body = {"tools": [WEATHER], "max_output_tokens": len(said) * 4 // 5}
        reply, events = await whole(client, **body), await streamed(client, **body)
    for response in (reply, events[-1]["response"]):
        assert (response["status"], response["output"][-1]["status"]) == ("incomplete", "incomplete")
        assert response["incomplete_details"] == {"reason": "max_output_tokens"}
    assert events[-1]["type"] == "response.incomplete"
    assert (reply["output"][-1]["type"] == "function_call") == (said == CALL)
    assert put_together(events) == events[-1]["response"]["output"]


async def test_a_reply_that_says_nothing_is_an_empty_message(make_scripted, make_client):
    async with make_client(make_scripted("")) as client:
        assert [item["content"][0]["text"] for item in (await whole(client))["output"]] == [""]
        events = await streamed(client)
    assert put_together(events) == events[-1]["response"]["output"]


async def test_a_failure_ends_a_stream_in_one_event_and_a_whole_reply_in_an_error(client, engine):
    engine.fail_after = 3
    failed = (await client.post(RESPONSES, json={"input": ASKED})).json()
    assert failed["error"]["code"] == "engine_failed"
    events = await streamed(client)
    assert kinds(events) == ["created", "in_progress", *TEXT_EVENTS[:3], "failed"]
    response = events[-1]["response"]
    assert response["error"] == {"code": "server_error", "message": "the tensor is on fire"}
    assert (response["status"], response["usage"]) == ("failed", None)
    [item] = response["output"]
    assert (item["status"], item["content"][0]["text"]) == ("incomplete", "<us")
    engine.bug = ZeroDivisionError("a secret")
    events = await streamed(client)
    assert kinds(events) == ["created", "in_progress", "failed"]
    assert "internal error" in events[-1]["response"]["error"]["message"]
    engine.fail_after = engine.bug = None
    assert not engine.aborted[2:] and (await whole(client))["status"] == "completed"


ITEMS = [
    {"role": "system", "content": "Be brief."},
    {"type": "message", "role": "user", "content": [{"type": "input_text", "text": ASKED}]},
    {
        "type": "message",
        "id": "msg_1",
        "status": "completed",
        "role": "assistant",
        "content": [{"type": "output_text", "text": "Let me see.", "annotations": [], "logprobs": []}],
    },
    {"type": "function_call", "id": "fc_1", "call_id": "a", "name": "weather", "arguments": ROME},
    {"type": "function_call", "call_id": "b", "name": "weather", "arguments": '{"cut": '},
    {"type": "function_call_output", "call_id": "b", "output": "done"},
    {
        "type": "function_call_output",
        "call_id": "a",
        "output": [{"type": "input_text", "text": "30 degrees"}],
    },
]


async def test_items_go_to_the_template_as_the_same_chat_does(make_scripted, make_client):
    def called(name, arguments):
        return {"id": name, "type": "function", "function": {"name": "weather", "arguments": arguments}}

    messages = [
        {"role": "system", "content": "Answer."},
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": ASKED},
        {
            "role": "assistant",
            "content": "Let me see.",
            "tool_calls": [called("a", ROME), called("b", '{"cut": ')],
        },
        {"role": "tool", "tool_call_id": "b", "content": "done"},
        {"role": "tool", "tool_call_id": "a", "content": "30 degrees"},
    ]
    function = {name: value for name, value in WEATHER.items() if name != "type"}
    engine = make_scripted("Yes.")
    async with make_client(engine) as client:
        await whole(client, instructions="Answer.", input=ITEMS, tools=[WEATHER])
        chat = {"messages": messages, "tools": [{"type": "function", "function": function}]}
        assert (await client.post("/v1/chat/completions", json=chat)).status_code == 200
    assert engine.prompts[0] == engine.prompts[1]
    assert "30 degrees of weather" in engine.prompts[0]


async def test_reasoning_is_an_item_of_its_own_and_goes_back_to_the_template(make_scripted, make_client):
    template = (
        "{% for m in messages %}<{{ m.role }}>"
        "{% if m.reasoning_content %}({{ m.reasoning_content }}){% endif %}{{ m.content }}{% endfor %}"
        " {{ reasoning_effort }}"
    )
    engine = make_scripted("<think>Hm. Rome?</think>Yes.", template, special=("<think>", "</think>"))
    async with make_client(engine) as client:
        reply, events = await whole(client), await streamed(client)
        more = [{"role": "user", "content": ASKED}, *reply["output"], {"role": "user", "content": "Sure?"}]
        await whole(client, input=more, reasoning={"effort": "low"})
    thought, message = reply["output"]
    assert (thought["type"], thought["content"][0]["text"]) == ("reasoning", "Hm. Rome?")
    assert message["content"][0]["text"] == "Yes."
    assert put_together(events) == events[-1]["response"]["output"]
    assert without_names(events[-1]["response"]) == without_names(reply)
    assert reply["usage"]["output_tokens_details"] == {"reasoning_tokens": len("Hm. Rome?")}
    assert engine.prompts[-1] == f"<user>{ASKED}<assistant>(Hm. Rome?)Yes.<user>Sure? low"


async def test_a_call_or_a_format_that_is_demanded_is_held_to_its_schema(make_scripted, make_client):
    said = []
    answer = {"type": "json_schema", "name": "answer", "schema": CITY, "strict": True}
    async with make_client(make_scripted(lambda _: said[-1])) as client:
        for body, right, wrong in (
            ({"text": {"format": answer}}, ROME, '{"city": "Bonn"}'),
            ({"text": {"format": {"type": "json_object"}}}, "{}", "Yes."),
            ({"tools": [WEATHER], "tool_choice": "required"}, CALL, "Yes."),
            (
                {"tools": [WEATHER], "tool_choice": {"type": "function", "name": "weather"}},
                CALL,
                CALL.replace("Rome", "Bonn"),
            ),
            ({"tools": [WEATHER | {"strict": True}]}, CALL, CALL.replace("Rome", "Bonn")),
            ({"tools": [WEATHER], "tool_choice": allowed("weather", mode="required")}, CALL, "Yes."),
        ):
            said.append(right)
            reply = await whole(client, **body)
            for name, value in body.get("text", {}).get("format", {}).items():
                assert reply["text"]["format"][name] == value
            said.append(wrong)
            assert (await client.post(RESPONSES, json={"input": ASKED, **body})).status_code == 500, body


@pytest.mark.parametrize("include", [["message.output_text.logprobs"], []])
async def test_a_messages_tokens_have_their_log_probabilities(make_scripted, make_client, include):
    engine = make_scripted(f"Warm.{CALL}")
    asked = {"include": include, "tools": [WEATHER]} | ({"top_logprobs": 2} if include else {})
    async with make_client(engine) as client:
        reply, events = await whole(client, **asked), await streamed(client, **asked)
    message = reply["output"][0]["content"][0]
    told = message["logprobs"]
    assert [entry["token"] for entry in told] == list("Warm." if include else "")
    for entry in told:
        assert (entry["logprob"], entry["bytes"]) == (-1.0, list(entry["token"].encode()))
        assert [top["logprob"] for top in entry["top_logprobs"]] == [-1.0, -2.0]
    texts = [event for event in events if event["type"].startswith("response.output_text")]
    *deltas, done = texts
    assert [entry for delta in deltas for entry in delta["logprobs"]] == told == done["logprobs"]
    assert events[-1]["response"]["output"][0]["content"][0] == message


PART = {"type": "input_text", "text": "hello"}
BAD = [
    ({"previous_response_id": "resp_1"}, "previous_response_id", "not supported"),
    ({"background": True}, "background", "send false"),
    ({"conversation": "conv_1"}, "conversation", "not supported"),
    ({"include": ["file_search_call.results"]}, "include", "there is message.output_text.logprobs"),
    ({"prompt": {"id": "p"}}, "prompt", "not supported"),
    ({"truncation": "auto"}, "truncation", "disabled"),
    ({"reasoning": {"summary": "auto"}}, "reasoning.summary", "not supported"),
    ({"top_logprobs": 2}, "top_logprobs", "include"),
    ({"top_logprobs": 21, "include": ["message.output_text.logprobs"]}, "top_logprobs", "0…20"),
    ({"stop_token_ids": [0] * 65}, "stop_token_ids", "at most 64"),
    ({"input": [{"role": "user", "content": []}] * 4097}, "input", "at most 4096"),
    ({"logit_bias": {"a": "b"}}, "logit_bias", "must be given a number"),
    ({"tool_choice": allowed("rain")}, "tool_choice.tools[0].name", "there are weather"),
    ({"tool_choice": {"type": "allowed_tools", "mode": "auto"}}, "tool_choice.tools", "is required"),
    ({"max_tokens": 5}, "max_tokens", "max_output_tokens"),
    ({"temperatur": 1}, "temperatur", "temperature"),
    ({"input": []}, "input", "at least 1"),
    ({"input": None}, "input", "is required"),
    ({"input": [{"type": "item_reference", "id": "x"}]}, "input[0].type", "function_call_output"),
    ({"input": [{"role": "user"}]}, "input[0].content", "is required"),
    ({"input": [{"role": "user", "content": "x", "output": "y"}]}, "input[0].output", "leave it out"),
    ({"input": [{"type": "function_call", "name": "x", "arguments": ""}]}, "input[0].call_id", "is required"),
    (
        {"input": [{"role": "user", "content": [PART, {"type": "input_image", "detail": "low"}]}]},
        "input[0].content[1].type",
        "input_text",
    ),
    ({"input": "x" * 100_001}, "input", "maximum context length"),
    ({"max_output_tokens": 0}, "max_output_tokens", "at least 1"),
    ({"max_output_tokens": 10**6}, "max_output_tokens", ""),
    ({"temperature": -1}, "temperature", ""),
    ({"stop": 5}, "stop", "list"),
    ({"text": {"format": {"type": "json_schema", "name": "x"}}}, "text.format.schema", "is required"),
    ({"text": {"format": {"type": "grammar", "syntax": "lark"}}}, "text.format.type", "json_schema"),
    (
        {"text": {"format": {"type": "json_schema", "name": "x", "schema": {"not": {}}}}, "tools": None},
        "text.format.schema",
        "not",
    ),
    ({"tools": [{"type": "web_search", "search_context_size": "low"}]}, "tools[0].type", "must be function"),
    ({"tools": [WEATHER, WEATHER]}, "tools[1].name", "another tool's name"),
    ({"tools": [{"type": "function", "name": "two words"}]}, "tools[0].name", "pattern"),
    (
        {"tools": [WEATHER, WEATHER | {"name": "x", "parameters": {"not": {}}}], "tool_choice": "required"},
        "tools[1].parameters",
        "not",
    ),
    ({"tool_choice": {"type": "function", "name": "rain"}}, "tool_choice.name", "there are weather"),
    ({"tool_choice": {"type": "function"}}, "tool_choice.name", "is required"),
    ({"tool_choice": {"type": "web_search_preview"}}, "tool_choice.type", "function"),
    ({"tools": None, "tool_choice": "required"}, "tool_choice", "give tools"),
    ({"chat_template_kwargs": {"tools": []}}, "chat_template_kwargs.tools", "field of its own"),
    ({"guidance": {"heads": {"nobody": 1}}}, "guidance.heads.nobody", "no such head"),
]


async def test_what_is_wrong_or_not_honoured_is_a_400_that_names_the_field(make_scripted, make_client):
    async with make_client(make_scripted("Yes.")) as client:
        for body, param, says in BAD:
            sent = {"input": ASKED, "tools": [WEATHER], **body}
            response = await client.post(RESPONSES, json={**sent, "stream": True})
            error = response.json()["error"]
            assert (response.status_code, error["param"]) == (400, param), error
            assert says in error["message"] and error["message"].startswith(param)


def neutral_values(table):
    labels = {name: "x" for name, values in table.items() if values is neutral.ANYTHING}
    others = {name: values for name, values in table.items() if values and values is not neutral.ANYTHING}
    return labels | {name: values[-1] for name, values in others.items()}


async def test_what_asks_for_nothing_changes_no_request(make_scripted, make_client):
    engine = make_scripted("Yes.")
    item = {"role": "user", "content": [PART]}
    async with make_client(engine) as client:
        await whole(client, input="hello", tools=[WEATHER])
        await whole(
            client,
            **neutral_values(neutral.RESPONSE),
            input=[
                item
                | neutral_values(neutral.RESPONSE_ITEM)
                | {"content": [PART | neutral_values(neutral.TEXT_PART)], "name": "Ada"}
            ],
            tools=[WEATHER | neutral_values(neutral.TOOL)],
            text=neutral_values(neutral.RESPONSE_TEXT),
            reasoning=neutral_values(neutral.REASONING),
        )
        await whole(
            client, **dict.fromkeys(neutral.RESPONSE), input="hello", tools=[WEATHER], frobnicate=None
        )
    prompts = {request.prompt_token_ids for request in engine.submitted}
    samplings = {request.sampling for request in engine.submitted}
    assert (len(engine.submitted), len(prompts), len(samplings)) == (3, 1, 1)


class Answer(pydantic.BaseModel):
    """How warm a city is."""

    city: str
    degrees: int


def test_openais_own_client_creates_streams_parses_and_calls(make_scripted, serve):
    answer = '{"city": "Rome", "degrees": 30}'
    script = iter(
        ["Yes.", "Yes.", answer, CALL.replace("weather", "Answer").replace(ROME, answer), CALL, "Yes."]
    )
    engine = make_scripted(lambda _: next(script))
    url = serve(create_app(engine, engine.tokenizer))
    with openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0) as client:
        reply = client.responses.create(model="script", input=ASKED, store=True, metadata={"a": "b"})
        assert (reply.output_text, reply.status) == ("Yes.", "completed")
        events = list(client.responses.create(model="script", input=ASKED, stream=True))
        assert "".join(e.delta for e in events if e.type == "response.output_text.delta") == "Yes."
        assert events[-1].response.output_text == "Yes."
        parsed = client.responses.parse(model="script", input=ASKED, text_format=Answer).output_parsed
        tools = [openai.pydantic_function_tool(Answer)]
        typed = client.responses.parse(model="script", input=ASKED, tools=tools)
        assert parsed == typed.output[0].parsed_arguments == Answer(city="Rome", degrees=30)
        with client.responses.stream(model="script", input=ASKED, tools=[WEATHER]) as stream:
            pieces = [e.delta for e in stream if e.type == "response.function_call_arguments.delta"]
            [call] = stream.get_final_response().output
        assert "".join(pieces) == call.arguments == ROME and len(pieces) > 2
        output = {"type": "function_call_output", "call_id": call.call_id, "output": "30 degrees"}
        history = [{"role": "user", "content": ASKED}, call, output]
        assert client.responses.create(model="script", input=history, tools=[WEATHER]).output_text == "Yes."
        assert "30 degrees of weather" in engine.prompts[-1]
        with pytest.raises(openai.BadRequestError, match="previous_response_id"):
            client.responses.create(model="script", input=ASKED, previous_response_id=reply.id)
