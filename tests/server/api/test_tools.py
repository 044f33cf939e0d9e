"""Tools: they reach the template and the grammar, and calls come back as OpenAI writes them."""

from __future__ import annotations

import json

import pytest

from trimtab.server.api.config import ApiConfig

pytestmark = pytest.mark.anyio

CHAT = "/v1/chat/completions"
USER = {"role": "user", "content": "Is it warm in Rome?"}
CITY = {
    "type": "object",
    "properties": {"city": {"$ref": "#/$defs/City"}},
    "required": ["city"],
    "additionalProperties": False,
    "$defs": {"City": {"enum": ["Rome", "Oslo"]}},
}


def tool(name="weather", parameters=CITY, **more):
    return {"type": "function", "function": {"name": name, "parameters": parameters, **more}}


def named(name):
    return {"type": "function", "function": {"name": name}}


TOOLS = [tool(description="of a city"), tool("stop", None)]
ROME, STOP = ("weather", '{"city": "Rome"}'), ("stop", "{}")


def written(format, *calls):
    if format == "llama3_json":
        return "; ".join(f'{{"name": "{name}", "parameters": {arguments}}}' for name, arguments in calls)
    each = (f'<tool_call>\n{{"name": "{n}", "arguments": {a}}}\n</tool_call>' for n, a in calls)
    return "\n".join(each)


def calls_of(message):
    return [
        (call["function"]["name"], call["function"]["arguments"]) for call in message.get("tool_calls", [])
    ]


async def whole(client, **body):
    response = await client.post(CHAT, json={"messages": [USER], "tools": TOOLS, **body})
    assert response.status_code == 200, response.text
    return response.json()["choices"]


async def streamed(client, **body):
    """Choices put together from their deltas, as clients do."""
    response = await client.post(CHAT, json={"messages": [USER], "tools": TOOLS, "stream": True, **body})
    found = {}
    for line in response.text.splitlines():
        if not line.startswith("data: {"):
            continue
        [choice] = json.loads(line.removeprefix("data: "))["choices"]
        mine = found.setdefault(choice["index"], {"message": {}, "finish_reason": None})
        assert mine["finish_reason"] is None
        mine["finish_reason"] = choice["finish_reason"]
        message = mine["message"]
        for key, value in choice["delta"].items():
            if key == "tool_calls":
                for piece in value:
                    calls = message.setdefault("tool_calls", [])
                    if piece["index"] == len(calls):
                        assert set(piece) == {"index", "id", "type", "function"}
                        calls.append(
                            {"id": piece["id"], "type": piece["type"], "function": piece["function"]}
                        )
                    else:
                        assert set(piece) == {"index", "function"}
                        calls[piece["index"]]["function"]["arguments"] += piece["function"]["arguments"]
            elif value is not None or key not in message:
                message[key] = (message.get(key) or "") + value if value is not None else None
    return [found[index] for index in sorted(found)]


def allowed(*names, mode="auto"):
    tools = [{"type": "function", "function": {"name": name}} for name in names]
    return {"type": "allowed_tools", "allowed_tools": {"mode": mode, "tools": tools}}


@pytest.mark.parametrize("format", ["hermes", "llama3_json"])
async def test_calls_are_the_same_streamed_and_whole(make_scripted, make_client, format):
    engine = make_scripted(written(format, ROME, STOP), format)
    async with make_client(engine) as client:
        for choices in (await whole(client, n=2), await streamed(client, n=2)):
            assert len(choices) == 2
            for choice in choices:
                assert calls_of(choice["message"]) == [ROME, STOP]
                assert choice["message"]["content"] is None
                assert choice["finish_reason"] == "tool_calls"
            ids = [call["id"] for choice in choices for call in choice["message"]["tool_calls"]]
            assert len(set(ids)) == 4 and all(i.startswith("call_") for i in ids)
    assert engine.submitted[0].grammar is None


async def test_words_before_a_call_are_content_and_a_cut_call_says_so(make_scripted, make_client):
    text = f"Let me see.\n\n{written('hermes', ROME)}"
    async with make_client(make_scripted(text)) as client:
        for [choice] in (await whole(client), await streamed(client)):
            assert choice["message"]["content"] == "Let me see."
            assert calls_of(choice["message"]) == [ROME]
        cut = text.rindex('me"')
        for [choice] in (await whole(client, max_tokens=cut), await streamed(client, max_tokens=cut)):
            assert choice["finish_reason"] == "length"
            assert calls_of(choice["message"]) == [("weather", '{"city": "Ro')]


async def test_one_call_is_passed_on_where_parallel_ones_are_not_wanted(make_scripted, make_client):
    async with make_client(make_scripted(written("hermes", ROME, STOP))) as client:
        for choices in (await whole(client, parallel_tool_calls=False), await whole(client)):
            assert calls_of(choices[0]["message"])[:1] == [ROME]
        assert len(calls_of((await streamed(client, parallel_tool_calls=False))[0]["message"])) == 1


async def test_without_tools_or_with_choice_none_a_reply_is_words(make_scripted, make_client):
    text = written("hermes", ROME)
    engine = make_scripted(text)
    async with make_client(engine) as client:
        for body in ({"tool_choice": "none"}, {"tools": []}, {"tools": None, "tool_choice": "auto"}):
            for [choice] in (await whole(client, **body), await streamed(client, **body)):
                assert (choice["message"]["content"], choice["finish_reason"]) == (text, "stop")
                assert "tool_calls" not in choice["message"]
    assert all("<tools>" not in prompt for prompt in engine.prompts)


FORCED = [
    # choice, fields, what may be said, what may not
    ("required", {}, [[ROME], [STOP], [ROME, STOP, ROME]], ["Yes.", [("weather", '{"city": "Paris"}')], []]),
    ("required", {"parallel_tool_calls": False}, [[ROME]], [[ROME, STOP]]),
    (named("stop"), {}, [[STOP]], [[ROME], [STOP, STOP], [("stop", '{"a": 1}')]]),
    (allowed("stop", mode="required"), {}, [[STOP], [STOP, STOP]], [[ROME], "Yes.", [STOP, ROME]]),
]


async def test_a_call_of_a_tool_that_is_not_allowed_stays_words(make_scripted, make_client):
    text = written("hermes", ROME)
    engine = make_scripted(lambda _: text)
    async with make_client(engine) as client:
        for [choice] in (
            await whole(client, tool_choice=allowed("stop")),
            await streamed(client, tool_choice=allowed("stop")),
        ):
            assert (choice["message"]["content"], choice["finish_reason"]) == (text, "stop")
        [choice] = await whole(client, tool_choice=allowed("stop", "weather"))
        assert calls_of(choice["message"]) == [ROME]
    assert len(set(engine.prompts)) == 1 and '"weather"' in engine.prompts[0], "the template is told of all"


@pytest.mark.parametrize("format", ["hermes", "llama3_json"])
@pytest.mark.parametrize(("choice", "fields", "allowed", "refused"), FORCED)
async def test_what_is_demanded_is_held_to_the_tools_schemas(
    make_scripted, make_client, choice, fields, allowed, refused, format
):
    said = []
    tools = [TOOLS[0], tool("stop", {"properties": {}})]
    body = {"tools": tools, "tool_choice": choice, **fields}
    async with make_client(make_scripted(lambda _: said[-1], format)) as client:
        for calls in allowed if format == "hermes" else [c for c in allowed if len(c) == 1]:
            said.append(written(format, *calls))
            [reply] = await whole(client, **body)
            assert calls_of(reply["message"]) == calls
            assert (reply["finish_reason"], reply["message"]["content"]) == ("tool_calls", None)
        for calls in refused:
            said.append(calls if isinstance(calls, str) else written(format, *calls))
            response = await client.post(CHAT, json={"messages": [USER], **body})
            assert response.status_code == 500, said[-1]


@pytest.mark.parametrize("format", ["hermes", "llama3_json"])
async def test_a_strict_tool_is_held_to_its_schema_when_it_is_called_and_words_are_free(
    make_scripted, make_client, format
):
    said = []
    paris = ("weather", '{"city": "Paris"}')
    async with make_client(make_scripted(lambda _: said[-1], format)) as client:
        body = {"tools": [tool(strict=True), tool("other", {})]}
        for text in ("Yes, {it} is.", written(format, ROME), written(format, ("other", '{"any": [1]}'))):
            said.append(text)
            assert (await whole(client, **body))[0]["finish_reason"] in ("stop", "tool_calls")
        said.append(written(format, paris))
        refused = await client.post(CHAT, json={"messages": [USER], **body})
        assert refused.status_code == 500
        assert calls_of((await whole(client))[0]["message"]) == [paris]  # not strict: as the model wrote it


@pytest.mark.parametrize("format", ["hermes", "llama3_json"])
async def test_a_reply_is_of_the_response_format_or_a_call(make_scripted, make_client, format):
    said = []
    schema = {"type": "object", "properties": {"warm": {"type": "boolean"}}, "required": ["warm"]}
    answer = {"type": "json_schema", "json_schema": {"name": "answer", "schema": schema}}
    async with make_client(make_scripted(lambda _: said[-1], format)) as client:
        said.append(written(format, ROME))
        assert calls_of((await whole(client, response_format=answer))[0]["message"]) == [ROME]
        said.append('{"warm": true}')
        [choice] = await whole(client, response_format=answer)
        assert (choice["message"]["content"], choice["finish_reason"]) == ('{"warm": true}', "stop")
        for text in ("Yes.", '{"warm": 1}'):
            said.append(text)
            response = await client.post(
                CHAT, json={"messages": [USER], "tools": TOOLS, "response_format": answer}
            )
            assert response.status_code == 500


HISTORY = [
    USER,
    {
        "role": "assistant",
        "content": None,
        "tool_calls": [
            {"id": "a", "type": "function", "function": {"name": "weather", "arguments": '{"city": "Rome"}'}},
            {"id": "b", "type": "function", "function": {"name": "stop", "arguments": ""}},
            {"id": "c", "type": "function", "function": {"name": "stop", "arguments": '{"cut": '}},
        ],
    },
    {"role": "tool", "tool_call_id": "b", "content": "done"},
    {"role": "tool", "tool_call_id": "a", "content": [{"type": "text", "text": "30 degrees"}]},
]


async def test_calls_and_their_results_go_to_the_template(make_scripted, make_client):
    engine = make_scripted("Yes.")
    async with make_client(engine) as client:
        [choice] = await whole(client, messages=HISTORY)
        assert choice["message"]["content"] == "Yes."
        assert "tool_calls" not in choice["message"]
    offered = [
        {"name": "weather", "description": "of a city", "parameters": CITY},
        {"name": "stop", "description": "", "parameters": {"type": "object", "properties": {}}},
    ]
    tools = json.dumps([{"type": "function", "function": function} for function in offered])
    assert engine.prompts == [
        f"<tools>{tools}</tools>call so: <tool_call><user>Is it warm in Rome?<assistant>"
        '<tool_call>{"name": "weather", "arguments": {"city": "Rome"}}</tool_call>'
        '<tool_call>{"name": "stop", "arguments": {}}</tool_call>'
        '<tool_call>{"name": "stop", "arguments": "{\\"cut\\": "}</tool_call>'
        "<tool>done of stop<tool>30 degrees of weather<assistant>"
    ]


CALL = HISTORY[1]["tool_calls"][0]
BAD = [
    ({"tool_choice": named("rain")}, "tool_choice.function.name", "there are weather, stop"),
    ({"tools": [], "tool_choice": "required"}, "tool_choice", "give tools"),
    ({"tools": None, "tool_choice": named("weather")}, "tool_choice", "give tools"),
    ({"tool_choice": "any"}, "tool_choice", '"required"'),
    ({"tool_choice": {"type": "function"}}, "tool_choice.function", "is required"),
    ({"tool_choice": {"type": "custom"}}, "tool_choice.type", "'function'"),
    ({"tool_choice": {"type": "allowed_tools"}}, "tool_choice.allowed_tools", "is required"),
    ({"tool_choice": allowed()}, "tool_choice.allowed_tools.tools", "at least 1"),
    (
        {"tool_choice": allowed("stop", "rain")},
        "tool_choice.allowed_tools.tools[1].function.name",
        "there are weather, stop",
    ),
    ({"tools": [tool(), tool()]}, "tools[1].function.name", "another tool's name"),
    ({"tools": [tool("two words")]}, "tools[0].function.name", "pattern"),
    ({"tools": [{"type": "custom"}]}, "tools[0].type", "'function'"),
    ({"tools": [tool()] * 129}, "tools", "at most 128"),
    ({"tools": [tool(parameters={"type": "string"})]}, "tools[0].function.parameters.type", '"object"'),
    (
        {"tools": [TOOLS[1], tool("x", {"not": {}})], "tool_choice": "required"},
        "tools[1].function.parameters",
        'keys: ["not"]',
    ),
    (
        {"tools": [tool(parameters={"type": "object", "not": {}}, strict=True)]},
        "tools[0].function.parameters",
        "not",
    ),
    ({"tools": [tool(parameters={"x": "y" * 70_000}, strict=True)]}, "tools", "65536"),
    ({"structured_outputs": {"regex": "a"}}, "structured_outputs.regex", "no room for calls"),
    ({"guided_json": "{"}, "guided_json", "no JSON"),
    ({"messages": [USER, {"role": "tool", "content": "x"}]}, "messages[1].tool_call_id", "is required"),
    ({"messages": [{**USER, "tool_call_id": "a"}]}, "messages[0].tool_call_id", "role tool"),
    ({"messages": [{**USER, "tool_calls": [CALL]}]}, "messages[0].tool_calls", "assistant"),
    ({"messages": [USER, {"role": "assistant", "content": None}]}, "messages[1].content", "is required"),
    ({"messages": [USER, {"role": "tool", "tool_call_id": "a"}]}, "messages[1].content", "is required"),
    (
        {"messages": [USER, {"role": "assistant", "tool_calls": [{**CALL, "function": {"name": "x"}}]}]},
        "messages[1].tool_calls[0].function.arguments",
        "is required",
    ),
]


@pytest.mark.parametrize(("body", "param", "says"), BAD)
async def test_what_is_wrong_with_tools_is_a_400_that_names_the_field(
    make_scripted, make_client, body, param, says
):
    async with make_client(make_scripted("Yes.")) as client:
        response = await client.post(CHAT, json={"messages": [USER], "tools": TOOLS, **body})
    error = response.json()["error"]
    assert (response.status_code, error["param"]) == (400, param), error
    assert says in error["message"]


PLAIN = "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}"
TEMPLATES = [
    (PLAIN, {}, "tools", "--tool-call-parser"),
    (PLAIN + "{# <tool_call> #}", {}, "tools", "leaves them out"),
    (PLAIN + "{{ tools }}<function=", {}, "tools", "--tool-call-parser"),
    (PLAIN, {"tools": None, "messages": HISTORY[:2]}, "messages", "leaves out tool_calls"),
]


@pytest.mark.parametrize(("template", "body", "param", "says"), TEMPLATES)
async def test_a_template_that_leaves_tools_out_is_told_of(
    make_scripted, make_client, template, body, param, says
):
    async with make_client(make_scripted("Yes.", template)) as client:
        response = await client.post(CHAT, json={"messages": [USER], "tools": TOOLS, **body})
    assert (response.status_code, response.json()["error"]["param"]) == (400, param)
    assert says in response.json()["error"]["message"]


async def test_a_format_that_is_named_counts_before_the_templates_own(make_scripted, make_client):
    engine = make_scripted(written("llama3_json", ROME), PLAIN + "{{ tools }}")
    async with make_client(engine, ApiConfig(tool_call_parser="llama3_json")) as client:
        assert calls_of((await whole(client))[0]["message"]) == [ROME]
    engine = make_scripted(written("hermes", ROME), "llama3_json")
    engine.tokenizer.chat_template = {"default": PLAIN, "tool_use": TEMPLATE_OF_TOOLS}
    async with make_client(engine) as client:
        assert calls_of((await whole(client))[0]["message"]) == [ROME]
    assert engine.prompts[0].startswith("2 tools")


TEMPLATE_OF_TOOLS = "{{ tools | length }} tools: <tool_call>" + PLAIN


async def test_tags_that_are_special_tokens_are_read(make_scripted, make_client):
    text = "Well. " + written("hermes", ROME, STOP)
    engine = make_scripted(text, special=("<tool_call>", "</tool_call>"))
    async with make_client(engine) as client:
        for [choice] in (await whole(client), await streamed(client)):
            assert choice["message"]["content"] == "Well."
            assert calls_of(choice["message"]) == [ROME, STOP]


async def test_the_other_prompt_is_told_of_the_tools_too(make_scripted, make_client):
    engine = make_scripted(written("hermes", ROME))
    rule = {"kind": "contrast", "negative_prompt": "Be vague."}
    async with make_client(engine) as client:
        [choice] = await whole(client, guidance={"rule": rule}, logprobs=True)
    assert calls_of(choice["message"]) == [ROME]
    assert len(choice["logprobs"]["content"]) == len(written("hermes", ROME))
    negative = engine.tokenizer.decode(engine.submitted[0].guidance.rule.negative_prompt)
    assert negative.startswith("<tools>") and "<system>Be vague.<user>" in negative
