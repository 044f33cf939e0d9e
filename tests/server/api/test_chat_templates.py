"""Requests through templates that refuse, and through ones that fail."""

from __future__ import annotations

import pytest

from trimtab.server.api.config import ApiConfig

CHAT = "/v1/chat/completions"
USER = {"role": "user", "content": "a"}


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


pytestmark = pytest.mark.anyio
KEEP = "{% set n = namespace(l=[]) %}{% for i in range(99999) %}{% set n.l = [n.l, "
FAULTS = {
    "{{ raise_exception('roles must alternate') }}": "roles must alternate",
    "{{ 1 / 0 }}": "division by zero",
    "{{ none + 1 }}": "NoneType",
    "{{ strftime_now(3) }}": "TypeError",
    "{% for i in range(10 ** 9) %}{% endfor %}": "Range too big",
    "{{ 'a' * 10 ** 10 }}": "characters",
    "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}": "recursion",
    "{% if %}": "no Jinja",
    "{{ ('\t' * 99999).expandtabs(99999) }}": "expandtabs",
    "{{ ('a' * 99999).translate({97: 'a' * 99999}) }}": "translate",
    "{{ ('a\n' * 99999) | indent(99999) }}": "characters",
    "{{ ('{0}' * 99999).format('a' * 99999) }}": "characters",
    "{{ ('a' * 99999).join(range(999) | map('string')) }}": "characters",
    "{{ ('a b ' * 999999) | wordwrap(1) }}": "wordwrap",
    "{{ ([[1] * 99] * 99) | sum(start=[]) }}": "lists up",
    "{% set a = ['a' * 9999] * 9999 %}{{ [a] * 9999 == [a] * 9998 }}": "characters",
    f"{KEEP}'a' * 99999 ~ i] %}}{{% endfor %}}": "characters, all counted",
    f"{KEEP}('a' * 99999)[1:]] %}}{{% endfor %}}": "characters, all counted",
    "{{ ''.__class__.__mro__ }}": "unsafe",
    "{% include 'x' %}": "loader",
}


@pytest.mark.parametrize("template", FAULTS)
async def test_whatever_a_template_does_is_the_requests_own_400(make_engine, make_client, template: str):
    async with make_client(make_engine(chat_template=template)) as client:
        response = await client.post(CHAT, json={"messages": [USER]})
        error = response.json()["error"]
        assert (response.status_code, error["param"]) == (400, "messages")
        assert FAULTS[template] in error["message"]
        assert (await client.post("/v1/completions", json={"prompt": "a"})).status_code == 200


async def test_a_template_may_refuse_one_conversation_and_take_another(make_engine, make_client):
    template = (
        "{% if messages[0].role == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}"
        "{% for m in messages %}{{ m.content }}{% endfor %}"
    )
    async with make_client(make_engine(chat_template=template)) as client:
        system = {"role": "system", "content": "b"}
        refused = await client.post(CHAT, json={"messages": [system, USER]})
        assert "System role not supported" in refused.json()["error"]["message"]
        assert (await client.post(CHAT, json={"messages": [USER]})).status_code == 200


async def test_the_servers_own_template_takes_the_place_of_the_models(make_engine, make_client):
    engine = make_engine()
    async with make_client(engine, ApiConfig(chat_template="xyz")) as client:
        assert (await client.post(CHAT, json={"messages": [USER]})).status_code == 200
    assert engine.tokenizer.decode(engine.submitted[0].prompt_token_ids) == "xyz"


@pytest.mark.parametrize(
    ("field", "sent"),
    [
        ("chat_template", "{{ 1 }}"),
        ("documents", [{"title": "a", "text": "b"}]),
        ("chat_template_kwargs", {"messages": []}),
        ("chat_template_kwargs", {"tools": [], "add_generation_prompt": False}),
        ("trust_remote_code", True),
    ],
)
async def test_a_client_has_no_template_of_its_own_nor_what_the_server_gives_it(engine, client, field, sent):
    response = await client.post(CHAT, json={"messages": [USER], field: sent})
    assert (response.status_code, response.json()["error"]["param"].partition(".")[0]) == (400, field)
    assert engine.submitted == []


async def test_what_a_client_gives_a_template_is_bounded_with_it(make_engine, make_client):
    template = "{% for i in range(n) %}{{ messages[0].content * n }}{% endfor %}"
    async with make_client(make_engine(chat_template=template)) as client:
        sent = {"messages": [USER], "chat_template_kwargs": {"n": 99_999}}
        response = await client.post(CHAT, json=sent)
        assert (response.status_code, response.json()["error"]["param"]) == (400, "messages")
        assert "characters" in response.json()["error"]["message"]
