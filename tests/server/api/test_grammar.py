"""Structured outputs: every spelling of a constraint, and what is refused by the name of its field."""

from __future__ import annotations

import json

import openai
import pydantic
import pytest

from trimtab.server.api.app import create_app
from trimtab.server.engine.request import EngineUnavailableError, GrammarSpec, InvalidRequestError

pytestmark = pytest.mark.anyio
CHAT, COMPLETIONS = "/v1/chat/completions", "/v1/completions"
USER = {"role": "user", "content": "hello"}
SCHEMA = {"type": "object", "properties": {"b": {"type": "integer"}, "a": {"const": "é"}}}
TEXT = json.dumps(SCHEMA, ensure_ascii=False)
ANY = GrammarSpec("json_schema", '{"type": "object"}')
NAMED = {"name": "it", "schema": SCHEMA, "strict": True, "description": "a thing"}

SPELLINGS = [
    ({"response_format": {"type": "text"}}, None),
    ({"response_format": None, "guided_regex": None, "structured_outputs": None}, None),
    ({"response_format": {"type": "json_object"}}, ANY),
    ({"response_format": {"type": "json_schema", "json_schema": NAMED}}, GrammarSpec("json_schema", TEXT)),
    ({"response_format": {"type": "text"}, "guided_regex": "a+"}, GrammarSpec("regex", "a+")),
    ({"structured_outputs": {"json": SCHEMA}}, GrammarSpec("json_schema", TEXT)),
    ({"structured_outputs": {"json": TEXT, "regex": None}}, GrammarSpec("json_schema", TEXT)),
    ({"structured_outputs": {"json_object": True}}, ANY),
    ({"structured_outputs": {"regex": "a+", "json_object": False}}, GrammarSpec("regex", "a+")),
    ({"structured_outputs": {"choice": ["é", "n"]}}, GrammarSpec("choice", '["é", "n"]')),
    ({"structured_outputs": {"grammar": "root ::= [a]"}}, GrammarSpec("grammar", "root ::= [a]")),
    ({"guided_json": SCHEMA}, GrammarSpec("json_schema", TEXT)),
    ({"guided_json": TEXT}, GrammarSpec("json_schema", TEXT)),
    ({"guided_regex": "a+"}, GrammarSpec("regex", "a+")),
    ({"guided_choice": ["n"]}, GrammarSpec("choice", '["n"]')),
    ({"guided_grammar": "root ::= [a]"}, GrammarSpec("grammar", "root ::= [a]")),
]


@pytest.mark.parametrize(("body", "expected"), SPELLINGS, ids=[str(list(b)) for b, _ in SPELLINGS])
async def test_each_spelling_is_compiled_and_reaches_the_engine(client, engine, body, expected):
    for path, own in ((CHAT, {"messages": [USER]}), (COMPLETIONS, {"prompt": "hello"})):
        response = await client.post(path, json={**own, **body})
        assert response.status_code == 200, response.text
        assert engine.submitted[-1].grammar == expected
    assert engine.prepared == [expected] * 2 if expected else not engine.prepared


def schema_format(**changes):
    named = {name: value for name, value in {**NAMED, **changes}.items() if value is not None}
    return {"response_format": {"type": "json_schema", "json_schema": named}}


REFUSED = [
    ({"response_format": "json_object"}, "response_format", ""),
    ({"response_format": {}}, "response_format.type", "required"),
    ({"response_format": {"type": "xml"}}, "response_format.type", "json_schema"),
    ({"response_format": {"type": "json_object", "x": 1}}, "response_format.x", "unknown field"),
    ({"response_format": {"type": "json_schema"}}, "response_format.json_schema", "is required"),
    (
        {"response_format": {"type": "text", "json_schema": NAMED}},
        "response_format.json_schema",
        "only allowed with type json_schema",
    ),
    (schema_format(name=None), "response_format.json_schema.name", "required"),
    (schema_format(name="a b"), "response_format.json_schema.name", "pattern"),
    (schema_format(schema=None), "response_format.json_schema.schema", "required"),
    (schema_format(schema=True), "response_format.json_schema.schema", "dictionary"),
    (schema_format(schema={"a": "x" * 2**16}), "response_format.json_schema.schema", "characters"),
    (schema_format(strict="yes"), "response_format.json_schema.strict", "boolean"),
    ({"structured_outputs": {}}, "structured_outputs", "asks for nothing"),
    ({"structured_outputs": {"json_object": False}}, "structured_outputs", "asks for nothing"),
    ({"structured_outputs": {"regexp": "a"}}, "structured_outputs.regexp", "unknown field"),
    ({"structured_outputs": {"structural_tag": "a"}}, "structured_outputs.structural_tag", "not supported"),
    ({"structured_outputs": {"json": 3}}, "structured_outputs.json", "JSON schema"),
    ({"structured_outputs": {"json": "\ud800"}}, "structured_outputs.json", "Unicode"),
    ({"structured_outputs": {"regex": ""}}, "structured_outputs.regex", "empty"),
    ({"structured_outputs": {"regex": "a" * 70000}}, "structured_outputs.regex", "70000 characters"),
    ({"structured_outputs": {"choice": []}}, "structured_outputs.choice", "at least 1"),
    ({"structured_outputs": {"choice": [1]}}, "structured_outputs.choice[0]", "string"),
    ({"structured_outputs": {"choice": ["a", ""]}}, "structured_outputs.choice", "empty string"),
    ({"structured_outputs": {"choice": ["abcdefgh"] * 8000}}, "structured_outputs.choice", "characters"),
    ({"guided_json": []}, "guided_json", "JSON schema"),
    ({"guided_regex": 3}, "guided_regex", "string"),
    ({"guided_choice": "yes"}, "guided_choice", "list"),
    ({"guided_grammar": ""}, "guided_grammar", "empty"),
    ({"guided_regex": "a", "guided_choice": ["a"]}, "guided_choice", "guided_regex and guided_choice"),
    ({"guided_regex": "a", "response_format": {"type": "json_object"}}, "guided_regex", "one constraint"),
    ({"structured_outputs": {"regex": "a", "json": {}}}, "structured_outputs.regex", "one constraint"),
    ({"structured_outputs": {"regex": "a", "json_object": True}}, "structured_outputs.json_object", "one"),
    ({"guided_regex": "a", "ignore_eos": True}, "ignore_eos", "grammar"),
]


@pytest.mark.parametrize(("body", "param", "says"), REFUSED)
async def test_what_cannot_be_honoured_is_a_400_that_names_the_field(client, engine, body, param, says):
    content = json.dumps({"messages": [USER], **body})
    response = await client.post(CHAT, content=content, headers={"content-type": "application/json"})
    assert response.status_code == 400, response.text
    error = response.json()["error"]
    assert error["param"] == param
    assert says in error["message"]
    assert not engine.submitted


@pytest.mark.parametrize("depth", [100, 300, 600, 800, 900, 950, 2000])
async def test_no_depth_of_a_schema_is_a_fault_of_ours(client, depth):
    schema = '{"items": ' * depth + "{}" + "}" * depth
    for field in ('"guided_json": %s', '"structured_outputs": {"json": %s}'):
        content = f'{{"messages": [{json.dumps(USER)}], {field % schema}}}'
        response = await client.post(CHAT, content=content, headers={"content-type": "application/json"})
        assert response.status_code in (200, 400), response.text


async def test_what_the_engine_says_of_a_grammar_is_told(client, engine, monkeypatch):
    async def refuse(grammar):
        raise InvalidRequestError("is none", grammar.param)

    async def be_busy(grammar):
        raise EngineUnavailableError("too many grammars are being compiled; try again in a moment")

    monkeypatch.setattr(engine, "prepare", refuse)
    response = await client.post(COMPLETIONS, json={"prompt": "a", "structured_outputs": {"regex": "("}})
    assert (response.status_code, response.json()["error"]["param"]) == (400, "structured_outputs.regex")
    monkeypatch.setattr(engine, "prepare", be_busy)
    response = await client.post(COMPLETIONS, json={"prompt": "a", "structured_outputs": {"regex": "("}})
    assert (response.status_code, "retry-after" in response.headers) == (503, True)


class Thing(pydantic.BaseModel):
    b: int
    a: str


def test_the_official_client_sends_a_class_as_its_schema(engine, serve):
    url = serve(create_app(engine, engine.tokenizer))
    with (
        openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0) as client,
        pytest.raises(pydantic.ValidationError),  # the engine of these tests echoes the prompt
    ):
        client.chat.completions.parse(model="echo", messages=[USER], response_format=Thing)
    (grammar,) = engine.prepared
    assert grammar.kind == "json_schema"
    assert list(json.loads(grammar.text)["properties"]) == ["b", "a"]
