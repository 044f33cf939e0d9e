"""Profiles: models of a server that stand for guidance."""

from __future__ import annotations

import datetime
import json

import pytest

from trimtab.guidance.errors import ConfigError
from trimtab.server.api.config import ApiConfig
from trimtab.server.api.models.profiles import read_profiles

pytestmark = pytest.mark.anyio

PROFILES = {
    "kinder": {"strength": 2, "heads": {"kind": 1.0}, "max_kl": 0.5},
    "both": {"heads": {"kind": 1.0, "brief": -1.0}},
    "less-rude": {"rule": {"kind": "contrast", "negative_prompt": "be rude"}, "strength": 0},
}
MESSAGES = [{"role": "user", "content": "hello"}]


@pytest.fixture
async def profiled(engine, make_client):
    config = ApiConfig(default_head="kind", default_strength=1.0, profiles=read_profiles(PROFILES))
    async with make_client(engine, config) as client:
        yield client


def drawn(engine):
    guidance = engine.submitted[-1].guidance
    return guidance.strength, guidance.heads, [type(c).__name__ for c in guidance.controllers]


async def test_a_request_for_a_profile_is_steered_as_that_says(profiled, engine):
    asked = {"model": "echo:kinder", "messages": MESSAGES}
    reply = (await profiled.post("/v1/chat/completions", json=asked)).json()
    assert reply["model"] == "echo:kinder"
    assert drawn(engine) == (2, (("kind", 1.0),), ["MaxKL"])
    asked = {"model": "echo:both", "prompt": "hi", "stream": True}
    stream = await profiled.post("/v1/completions", json=asked)
    first = json.loads(stream.text.split("\n")[0].removeprefix("data: "))
    assert first["model"] == "echo:both"
    assert drawn(engine)[:2] == (1, (("kind", 1.0), ("brief", -1.0)))
    score = {"model": "echo:both", "prompt": "a", "completion": "b"}
    assert (await profiled.post("/v1/score", json=score)).json()["model"] == "echo:both"
    assert drawn(engine)[:2] == (1, (("kind", 1.0), ("brief", -1.0)))


async def test_a_profile_has_its_other_prompt_beside_the_requests_messages(profiled, engine):
    asked = {"model": "echo:less-rude", "messages": MESSAGES}
    assert (await profiled.post("/v1/chat/completions", json=asked)).status_code == 200
    companion = engine.tokenizer.decode(engine.submitted[-1].guidance.rule.negative_prompt)
    assert companion == "<system>be rude<user>hello<assistant>"


@pytest.mark.parametrize("model", [None, "echo"])
async def test_without_a_profile_the_servers_default_holds(profiled, engine, model):
    await profiled.post("/v1/chat/completions", json={"model": model, "messages": MESSAGES})
    assert drawn(engine) == (1, (("kind", 1.0),), [])


async def test_a_requests_own_guidance_takes_the_whole_place_of_the_profiles(profiled, engine):
    asked = {"model": "echo:kinder", "messages": MESSAGES, "guidance": {"heads": {"brief": 1}}}
    await profiled.post("/v1/chat/completions", json=asked)
    assert drawn(engine) == (1, (("brief", 1.0),), [])


async def test_models_lists_profiles_and_an_unknown_one_is_told_what_there_is(profiled):
    listed = (await profiled.get("/v1/models")).json()["data"]
    assert [model["id"] for model in listed] == ["echo", "echo:kinder", "echo:both", "echo:less-rude"]
    one = (await profiled.get("/v1/models/echo:kinder")).json()
    assert (one["root"], one["guidance"]) == ("echo", PROFILES["kinder"])
    for response in (
        await profiled.get("/v1/models/echo:rude"),
        await profiled.post("/v1/completions", json={"model": "echo:rude", "prompt": "hi"}),
    ):
        assert (response.status_code, response.json()["error"]["code"]) == (404, "model_not_found")
        assert "'echo', 'echo:kinder', 'echo:both'" in response.json()["error"]["message"]


BAD = {
    "a b": ({}, "a name has"),
    "typo": ({"strenght": 1}, r"guidance\.strenght: unknown field; did you mean strength"),
    "type": ({"strength": "much"}, r"guidance\.strength: "),
    "inner": ({"target": {"head": "kind"}}, r"guidance\.target\.value: is required"),
    "list": (["strength"], "must be a mapping"),
    "date": ({"strength": datetime.date(2026, 1, 1)}, "holds what JSON does not"),
    "key": ({True: 1}, r"guidance\.true: unknown field"),
    "range": ({"strength": 99}, r"guidance\.strength: must be a number in"),
    "head": ({"heads": {"kid": 1}}, r"guidance\.heads\.kid: "),
    "rule": ({"rule": "magic"}, r"guidance\.rule"),
}


@pytest.mark.parametrize("name", BAD)
async def test_a_bad_profile_is_refused_at_the_start_by_name_and_field(name, engine, make_client):
    fields, problem = BAD[name]
    with pytest.raises(ConfigError, match=f"^profile '{name}': {problem}"):
        make_client(engine, ApiConfig("kind", profiles=read_profiles({name: fields})))
