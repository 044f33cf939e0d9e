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
FAULTS = {
    "{{ raise_exception('roles must alternate') }}": "roles must alternate",
    "{{ 1 / 0 }}": "division by zero",
    "{{ none + 1 }}": "NoneType",
    "{{ strftime_now(3) }}": "TypeError",
    "{% for i in range(10 ** 9) %}{% endfor %}": "Range too big",
    "{{ 'a' * 10 ** 10 }}": "characters",
    "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}": "recursion",
    "{% if %}": "no Jinja",
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
