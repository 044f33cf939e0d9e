"""Clients share one engine: whose a request is, what they find in caches, and how long they wait to begin."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from pathlib import Path

import pytest

from trimtab.server.api.access.config import AccessConfig
from trimtab.server.api.config import ApiConfig

CHAT, COMPLETION = "/v1/chat/completions", "/v1/completions"
USER = {"role": "user", "content": "hello"}
ROUTES = {
    CHAT: {"messages": [USER]},
    COMPLETION: {"prompt": "hello"},
    "/v1/responses": {"input": "hello"},
    "/v1/score": {"messages": [USER, {"role": "assistant", "content": "hi"}]},
}
ANA, BO = ({"Authorization": f"Bearer {name}-has-a-key"} for name in ("ana", "bo"))


@pytest.fixture
def keyed(tmp_path: Path) -> AccessConfig:
    path = tmp_path / "keys"
    path.write_text("ana:ana-has-a-key\nbo:bo-has-a-key\n")
    return AccessConfig(api_keys=path)


@pytest.mark.anyio
@pytest.mark.parametrize("path", ROUTES)
async def test_a_request_is_its_keys_and_shares_prefixes_with_no_other(make_client, engine, keyed, path: str):
    async with make_client(engine, ApiConfig(default_head="kind", access=keyed)) as client:
        for headers in (ANA, BO, ANA):
            assert (await client.post(path, json=ROUTES[path], headers=headers)).status_code == 200
    assert [request.tenant for request in engine.submitted] == ["ana", "bo", "ana"]
    ana, bo, again = (request.salt for request in engine.submitted)
    assert ana == again != bo


@pytest.mark.anyio
async def test_prefixes_are_shared_by_all_where_that_is_asked_for_but_never_beyond_a_salt(
    make_client, engine, keyed
):
    access = replace(keyed, share_prefixes=True)
    async with make_client(engine, ApiConfig(default_head="kind", access=access)) as client:
        for headers, salt in ((ANA, None), (BO, None), (ANA, "x"), (BO, "x"), (BO, "y")):
            body = ROUTES[CHAT] | ({"cache_salt": salt} if salt else {})
            assert (await client.post(CHAT, json=body, headers=headers)).status_code == 200
    plain, theirs, x, theirs_x, y = (request.salt for request in engine.submitted)
    assert plain == theirs == ""
    assert x == theirs_x
    assert len({plain, x, y}) == 3


@pytest.mark.anyio
@pytest.mark.parametrize(
    ("path", "more"),
    [
        (CHAT, {"prompt_logprobs": 1}),
        (COMPLETION, {"echo": True, "logprobs": 1}),
        ("/v1/responses", {}),
        (CHAT, {"response_format": {"type": "json_object"}}),
    ],
)
async def test_a_salt_is_of_all_that_a_request_leaves_in_caches(make_client, engine, path: str, more: dict):
    async with make_client(engine, ApiConfig(default_head="kind")) as client:
        assert (await client.post(path, json=ROUTES[path])).status_code == 200
        done = await client.post(path, json={**ROUTES[path], **more, "cache_salt": "mine"})
        assert done.status_code == 200, done.text
    first, *salted = engine.submitted
    assert first.salt == "" and {request.salt for request in salted} == {"anyone\0mine"}
    assert {grammar.salt for grammar in engine.prepared} <= {"anyone\0mine"}


@pytest.mark.anyio
@pytest.mark.parametrize("path", ROUTES)
@pytest.mark.parametrize("stream", [False, True])
async def test_who_waits_too_long_gets_503_before_a_status_of_200(
    make_client, engine, path: str, stream: bool
):
    engine.fail_after, engine.failure_reason = 0, "queue"
    access = AccessConfig(queue_timeout=5.0)
    async with make_client(engine, ApiConfig(default_head="kind", access=access)) as client:
        body = ROUTES[path] | ({"stream": True} if stream and path != "/v1/score" else {})
        late = await client.post(path, json=body)
    assert (late.status_code, late.json()["error"]["code"]) == (503, "queue_timeout")
    assert late.headers["retry-after"]
    assert engine.submitted[0].max_wait == 5.0


@pytest.mark.anyio
async def test_of_many_prompts_the_first_alone_may_not_wait_too_long(make_client, engine):
    async with make_client(engine, ApiConfig(access=AccessConfig(queue_timeout=5.0))) as client:
        body = {"prompt": ["one", "two", "three"], "stream": True}
        streamed = await client.post(COMPLETION, json=body)
    assert streamed.text.endswith("data: [DONE]\n\n")
    assert streamed.text.count('"text":"o"') == 2, "what was read before the status is told"
    assert [request.max_wait for request in engine.submitted] == [5.0, None, None]


@pytest.mark.anyio
@pytest.mark.parametrize("path", [*ROUTES, "/tokenize"])
async def test_every_route_answers_in_time(make_client, engine, path: str, monkeypatch):
    engine.hold_after = 0
    access = AccessConfig(request_timeout=0.2)
    app = make_client(engine, ApiConfig(default_head="kind", access=access))
    if path == "/tokenize":
        monkeypatch.setattr(
            "trimtab.server.api.tokens.Encoding.run", lambda *_: asyncio.get_running_loop().create_future()
        )
    async with app as client:
        late = await client.post(path, json=ROUTES.get(path, {"prompt": "x"}))
    assert (late.status_code, late.json()["error"]["code"]) == (504, "request_timeout")
