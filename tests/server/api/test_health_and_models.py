from __future__ import annotations

from dataclasses import replace

import httpx
import pytest

from trimtab.server.api.app import connect, create_waiting_app
from trimtab.server.api.config import ApiConfig

pytestmark = pytest.mark.anyio

BODY = {"messages": [{"role": "user", "content": "hello"}]}
ROUTES = [("GET", "/v1/models"), ("POST", "/v1/chat/completions"), ("POST", "/v1/completions")]


async def assert_unavailable(client, reason):
    health = await client.get("/health")
    assert health.status_code == 503
    assert reason in health.json()["reason"]
    for method, path in ROUTES:
        response = await client.request(method, path, json=BODY)
        assert response.status_code == 503
        assert response.headers["retry-after"] == health.headers["retry-after"] == "5"
        error = response.json()["error"]
        assert (error["type"], error["code"]) == ("server_error", "not_ready")
        assert reason in error["message"]


async def test_everything_is_503_until_the_engine_is_connected(engine):
    app = create_waiting_app()
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://t") as client:
        await assert_unavailable(client, "loading")
        connect(app, engine, engine.tokenizer, ApiConfig(default_head="kind"))
        assert (await client.get("/health")).status_code == 200
        assert (await client.post("/v1/chat/completions", json=BODY)).status_code == 200


STATUSES = [("starting", "loading"), ("stopping", "shutting down"), ("dead", "died")]


@pytest.mark.parametrize(("status", "reason"), STATUSES)
async def test_an_engine_that_cannot_serve_is_503_with_a_reason(client, engine, status, reason):
    engine.status = status
    await assert_unavailable(client, reason)
    engine.status = "ready"
    assert (await client.get("/health")).json() == {"status": "ready"}


async def test_models_lists_the_model_with_its_heads(client):
    listed = (await client.get("/v1/models")).json()
    assert listed["object"] == "list"
    (model,) = listed["data"]
    assert (model["id"], model["object"], model["created"]) == ("echo", "model", 1)
    assert [head["name"] for head in model["heads"]] == ["kind", "brief", "meter"]
    assert model["experts"][1] == {"name": "short", "max_model_len": 50}
    assert (model["default_head"], model["default_strength"]) == ("kind", 1.0)
    assert (await client.get("/v1/models/echo")).json() == model


async def test_another_model_is_not_found(client):
    response = await client.get("/v1/models/some/other")
    assert response.status_code == 404
    assert response.json()["error"]["code"] == "model_not_found"


async def test_a_models_name_may_hold_a_slash(make_engine, make_client):
    engine = make_engine()
    engine.info = replace(engine.info, model_name="org/echo")
    async with make_client(engine) as client:
        assert (await client.get("/v1/models/org/echo")).json()["id"] == "org/echo"
        reply = await client.post("/v1/chat/completions", json={**BODY, "model": "org/echo"})
        assert reply.json()["model"] == "org/echo"
        assert (await client.post("/v1/chat/completions", json={**BODY, "model": "echo"})).status_code == 404
