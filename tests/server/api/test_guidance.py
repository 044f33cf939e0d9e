"""The default rules of the `guidance` object, and what it refuses."""

from __future__ import annotations

import json
from typing import Any

import pytest

from trimtab.guidance.controllers.entropy_gate import EntropyGate
from trimtab.guidance.controllers.kl_budget import KLBudget
from trimtab.guidance.controllers.max_kl import MaxKL
from trimtab.guidance.controllers.schedule import Schedule
from trimtab.guidance.controllers.target import Target
from trimtab.guidance.errors import ConfigError
from trimtab.guidance.rules import Expert, Lookahead, Smc
from trimtab.server.api.config import ApiConfig, resolve_config
from trimtab.server.engine.request import Guidance

pytestmark = pytest.mark.anyio

KIND = (("kind", 1.0),)
METER = (("meter", 1.0),)
MESSAGES = [{"role": "user", "content": "hello"}]


def contrast(**options: Any) -> dict[str, Any]:
    return {"kind": "contrast", "negative_prompt": "rude", **options}


def expert(**options: Any) -> dict[str, Any]:
    return {"kind": "expert", "expert": "tuned", **options}


async def post(client, guidance: Any):
    content = json.dumps({"messages": MESSAGES, "guidance": guidance}).encode()
    return await client.post(
        "/v1/chat/completions", content=content, headers={"content-type": "application/json"}
    )


@pytest.mark.parametrize(
    ("guidance", "expected"),
    [
        (None, Guidance(0.5, (("kind", 1.0),))),
        ({}, Guidance(0.5, (("kind", 1.0),))),
        ({"trace": True}, Guidance(0.5, (("kind", 1.0),), trace=True)),
        ({"rule": "tilt"}, Guidance(0.5, (("kind", 1.0),))),
        ({"rule": "lookahead"}, Guidance(1.0, (("kind", 1.0),), rule=Lookahead())),
        (
            {"rule": {"kind": "lookahead", "k": 3}, "heads": {"meter": 1}},
            Guidance(1.0, METER, rule=Lookahead(3)),
        ),
        ({"rule": "lookahead", "strength": 0}, Guidance(0.0, (("kind", 1.0),))),
        (
            {"rule": expert(anti_expert="policy", weight=-2, alpha=None), "heads": {}, "strength": 0},
            Guidance(rule=Expert("tuned", "policy", -2)),
        ),
        (
            {"rule": {"kind": "smc", "particles": 3}, "strength": 2},
            Guidance(2.0, KIND, rule=Smc(particles=3)),
        ),
        ({"rule": "smc", "strength": 1e-9}, Guidance(0.0, KIND)),
        ({"rule": "lookahead", "max_kl": 0.5}, Guidance(1.0, KIND, False, (MaxKL(0.5),), Lookahead())),
        ({"strength": -2}, Guidance(-2.0, (("kind", 1.0),))),
        ({"strength": 0}, Guidance(0.0, (("kind", 1.0),))),
        ({"heads": {"brief": 0.5}}, Guidance(1.0, (("brief", 0.5),))),
        ({"heads": {"kind": 1, "brief": -1}, "strength": 3}, Guidance(3.0, (("kind", 1.0), ("brief", -1.0)))),
        ({"heads": {}, "strength": 0}, Guidance(0.0, ())),
        ({"heads": {"meter": 1}, "strength": 0}, Guidance(0.0, (("meter", 1.0),))),
        ({"heads": {"kind": 1, "meter": 0}}, Guidance(1.0, (("kind", 1.0), ("meter", 0.0)))),
        ({"strength": None, "heads": None, "max_kl": None}, Guidance(0.5, (("kind", 1.0),))),
        ({"max_kl": 0.5}, Guidance(1.0, (("kind", 1.0),), controllers=(MaxKL(0.5),))),
        (
            {"kl_budget": 5, "horizon": 8, "strength": -3},
            Guidance(-3.0, (("kind", 1.0),), controllers=(KLBudget(5.0, 8),)),
        ),
        (
            {"target": {"head": "kind", "value": -1}, "heads": {"kind": 2, "brief": 1}},
            Guidance(1.0, (("kind", 2.0), ("brief", 1.0)), controllers=(Target("kind", -1.0),)),
        ),
        (
            {"schedule": {"kind": "warmup", "tokens": 3}, "entropy_gate": 0, "strength": 0},
            Guidance(0.0, (("kind", 1.0),), controllers=(Schedule("warmup", 3), EntropyGate(0.0))),
        ),
        (
            {"schedule": {"kind": "constant", "tokens": None}},
            Guidance(1.0, (("kind", 1.0),), controllers=(Schedule("constant"),)),
        ),
    ],
)
async def test_what_is_left_out_follows_the_default_rules(make_engine, make_client, guidance, expected):
    engine = make_engine("kind", "brief", "meter")
    async with make_client(engine, ApiConfig(default_head="kind", default_strength=0.5)) as client:
        response = await post(client, guidance)
        assert response.status_code == 200, response.text
    assert engine.submitted[0].guidance == expected


@pytest.mark.parametrize(
    ("guidance", "param", "says"),
    [
        ({"strength": float("nan")}, "guidance.strength", "finite"),
        ({"strength": float("inf")}, "guidance.strength", "finite"),
        ({"strength": 11}, "guidance.strength", "-10…10"),
        ({"strength": "2"}, "guidance.strength", "number"),
        ({"heads": {"kind": -10.5}}, "guidance.heads.kind", "-10…10"),
        ({"heads": {"kind": float("nan")}}, "guidance.heads.kind", "finite"),
        ({"heads": {"kind": "1"}}, "guidance.heads.kind", "number"),
        ({"heads": ["kind"]}, "guidance.heads", "dictionary"),
        ({"heads": {}}, "guidance.heads", "name at least one head"),
        ({"heads": {"bold": 1}}, "guidance.heads.bold", "kind, brief, meter"),
        ({"heads": {"bold": 1}, "strength": 0}, "guidance.heads.bold", "kind, brief, meter"),
        ({"heads": {"meter": 1}}, "guidance.heads.meter", "no advantage"),
        ({"vigour": 1}, "guidance.vigour", "unknown field"),
        ({"rule": "magic"}, "guidance.rule", "tilt, contrast"),
        ({"rule": 3}, "guidance.rule", ""),
        ({"rule": {}}, "guidance.rule.kind", "required"),
        ({"rule": {"kind": 3}}, "guidance.rule.kind", "string"),
        ({"rule": {"kind": "tilt", "k": 3}}, "guidance.rule.k", "no such option"),
        ({"rule": "contrast"}, "guidance.rule.negative_prompt", "required"),
        ({"rule": contrast(gamma="2")}, "guidance.rule.gamma", "number"),
        ({"rule": contrast(gamma=True)}, "guidance.rule.gamma", "number"),
        ({"rule": contrast(gamma=float("nan"))}, "guidance.rule.gamma", "-10…10"),
        ({"rule": contrast(gamma=10**400)}, "guidance.rule.gamma", "-10…10"),
        ({"rule": contrast(alpha=1.5)}, "guidance.rule.alpha", "0…1"),
        ({"rule": contrast(alpha=-1e-9)}, "guidance.rule.alpha", "0…1"),
        ({"rule": contrast(negative_prompt=3)}, "guidance.rule.negative_prompt", "list"),
        ({"rule": contrast(negative_prompt=[])}, "guidance.rule.negative_prompt", "required"),
        ({"rule": contrast(negative_prompt=[{}])}, "guidance.rule.negative_prompt[0].role", "required"),
        ({"rule": contrast(negative_prompt="x" * 200)}, "guidance.rule.negative_prompt", "tokens"),
        ({"rule": contrast(kind="tilt")}, "guidance.rule.negative_prompt", "no such option"),
        ({"rule": "expert"}, "guidance.rule.expert", "required"),
        *(
            ({"rule": expert(expert=bad)}, "guidance.rule.expert", "required")
            for bad in ("", 3, True, ["tuned"], {}, "policy")
        ),
        ({"rule": expert(expert="tunéd")}, "guidance.rule.expert", "loaded experts: tuned, short"),
        ({"rule": expert(expert="short")}, "guidance.rule.expert", "context of 50"),
        ({"rule": expert(anti_expert="x")}, "guidance.rule.anti_expert", "loaded experts: tuned, short"),
        ({"rule": expert(anti_expert="short")}, "guidance.rule.anti_expert", "context of 50"),
        *(
            ({"rule": expert(anti_expert=bad)}, "guidance.rule.anti_expert", "another model")
            for bad in ("", 3, ["short"], "tuned")
        ),
        *(
            ({"rule": expert(weight=bad)}, "guidance.rule.weight", "-10…10")
            for bad in (10.5, "1", True, [1], float("nan"), float("-inf"), 10**400)
        ),
        ({"rule": expert(alpha=2)}, "guidance.rule.alpha", "0…1"),
        ({"rule": expert(gamma=2)}, "guidance.rule.gamma", "no such option"),
        ({"rule": {"kind": "lookahead", "k": 0}}, "guidance.rule.k", "1…64"),
        ({"rule": {"kind": "lookahead", "k": 65}}, "guidance.rule.k", "1…64"),
        ({"rule": {"kind": "lookahead", "k": 2.0}}, "guidance.rule.k", "integer"),
        ({"rule": {"kind": "lookahead", "k": "2"}}, "guidance.rule.k", "integer"),
        ({"rule": {"kind": "lookahead", "k": True}}, "guidance.rule.k", "integer"),
        ({"rule": {"kind": "lookahead", "k": float("nan")}}, "guidance.rule.k", "integer"),
        ({"rule": {"kind": "lookahead", "others": "x"}}, "guidance.rule.others", "drop, keep"),
        ({"rule": {"kind": "lookahead", "others": []}}, "guidance.rule.others", "drop, keep"),
        ({"rule": {"kind": "blockwise", "candidates": 1}}, "guidance.rule.candidates", "2…64"),
        ({"rule": {"kind": "blockwise", "candidates": 65}}, "guidance.rule.candidates", "2…64"),
        ({"rule": {"kind": "blockwise", "keep": 8}}, "guidance.rule.keep", "below candidates"),
        ({"rule": {"kind": "blockwise", "keep": 0}}, "guidance.rule.keep", "1…8"),
        ({"rule": {"kind": "blockwise", "block": 0}}, "guidance.rule.block", "1…1024"),
        ({"rule": {"kind": "blockwise", "block": 1.5}}, "guidance.rule.block", "integer"),
        ({"rule": {"kind": "blockwise", "proposal": "x"}}, "guidance.rule.proposal", "policy, tilt"),
        ({"rule": {"kind": "smc", "particles": "8"}}, "guidance.rule.particles", "integer"),
        ({"rule": {"kind": "smc", "particles": 10**30}}, "guidance.rule.particles", "2…64"),
        ({"rule": {"kind": "smc", "resample": 1.1}}, "guidance.rule.resample", "0…1"),
        ({"rule": {"kind": "smc", "resample": float("nan")}}, "guidance.rule.resample", "0…1"),
        ({"rule": {"kind": "smc", "keep": 1}}, "guidance.rule.keep", "no such option"),
        ({"rule": "smc", "heads": {"brief": 1}}, "guidance.heads.brief", "no value"),
        (
            {"rule": {"kind": "smc", "proposal": "tilt"}, "heads": {"meter": 1}},
            "guidance.heads.meter",
            "advantage",
        ),
        ({"rule": "lookahead", "heads": {"brief": 1}}, "guidance.heads.brief", "no value"),
        ({"rule": "lookahead", "heads": {}}, "guidance.heads", "at least one"),
        *(
            ({name: bad}, f"guidance.{name}", "above 0")
            for name in ("max_kl", "kl_budget")
            for bad in (0, -1, 1e300)
        ),
        *(
            ({name: bad}, f"guidance.{name}", says)
            for name in ("max_kl", "kl_budget", "entropy_gate")
            for bad, says in (("1", "number"), (True, "number"), (float("nan"), "finite"), ([1], "number"))
        ),
        ({"max_kl": 10**400}, "guidance.max_kl", ""),
        ({"entropy_gate": -0.1}, "guidance.entropy_gate", "0…100"),
        ({"entropy_gate": 101}, "guidance.entropy_gate", "0…100"),
        ({"target": "kind"}, "guidance.target", "dictionary"),
        ({"target": {"head": "kind"}}, "guidance.target.value", "is required"),
        ({"target": {"value": 1}}, "guidance.target.head", "is required"),
        ({"target": {"head": 3, "value": 1}}, "guidance.target.head", "string"),
        ({"target": {"head": "kind", "value": "1"}}, "guidance.target.value", "number"),
        ({"target": {"head": "kind", "value": float("inf")}}, "guidance.target.value", "finite"),
        ({"target": {"head": "kind", "value": 1e300}}, "guidance.target.value", "-100…100"),
        ({"target": {"head": "kind", "value": 1, "speed": 2}}, "guidance.target.speed", "unknown field"),
        ({"target": {"head": "bold", "value": 1}}, "guidance.target.head", "kind, brief, meter"),
        ({"target": {"head": "\ud800", "value": 1}}, "guidance.target.head", "Unicode"),
        ({"target": {"head": "brief", "value": 1}}, "guidance.target.head", "has no value"),
        ({"target": {"head": "meter", "value": 1}}, "guidance.target.head", "cannot hold a target"),
        (
            {"target": {"head": "kind", "value": 1}, "heads": {"brief": 1}},
            "guidance.target.head",
            "give it a weight in guidance.heads",
        ),
        ({"horizon": 8}, "guidance.horizon", "says nothing without kl_budget or target"),
        ({"horizon": 8, "max_kl": 1}, "guidance.horizon", "says nothing without"),
        *(
            ({"horizon": bad, "kl_budget": 1}, "guidance.horizon", "1…4096")
            for bad in (0, -1, 4097, 2**63, 10**400)
        ),
        ({"horizon": 1.5, "kl_budget": 1}, "guidance.horizon", "integer"),
        ({"horizon": "8", "kl_budget": 1}, "guidance.horizon", "integer"),
        ({"schedule": "warmup"}, "guidance.schedule", "dictionary"),
        ({"schedule": {"kind": "cosine", "tokens": 3}}, "guidance.schedule.kind", "'warmup'"),
        ({"schedule": {"tokens": 3}}, "guidance.schedule.kind", "is required"),
        ({"schedule": {"kind": "warmup"}}, "guidance.schedule.tokens", "is required by warmup"),
        ({"schedule": {"kind": "warmup", "tokens": 0}}, "guidance.schedule.tokens", "1…"),
        ({"schedule": {"kind": "decay", "tokens": 2**31}}, "guidance.schedule.tokens", "1…"),
        ({"schedule": {"kind": "decay", "tokens": True}}, "guidance.schedule.tokens", "integer"),
        ({"schedule": {"kind": "constant", "tokens": 3}}, "guidance.schedule.tokens", "leave it out"),
        ({"rule": "smc", "on": "all"}, "guidance.rule.proposal", "use tilt"),
        ({"rule": contrast(), "target": {"head": "kind", "value": 1}}, "guidance.target", "rule contrast"),
        ({"trace": "yes"}, "guidance.trace", "boolean"),
        ("kind", "guidance", ""),
        (3, "guidance", ""),
    ],
)
async def test_bad_guidance_is_refused_and_named(client, guidance, param, says):
    response = await post(client, guidance)
    assert response.status_code == 400
    error = response.json()["error"]
    assert (error["param"], error["type"]) == (param, "invalid_request_error")
    assert says in error["message"]
    assert error["message"].startswith(f"{param}: ")


async def test_several_heads_without_a_default_must_be_named(make_engine, make_client):
    engine = make_engine("kind", "brief")
    async with make_client(engine) as client:
        assert (await post(client, None)).status_code == 200
        assert engine.submitted[0].guidance == Guidance()
        response = await post(client, {"strength": 1})
        assert response.status_code == 400
        assert response.json()["error"]["param"] == "guidance.heads"
        assert "kind, brief" in response.json()["error"]["message"]


async def test_the_only_head_is_the_default_head(make_engine, make_client):
    engine = make_engine("brief")
    async with make_client(engine) as client:
        await post(client, {"strength": 2})
    assert engine.submitted[0].guidance == Guidance(2.0, (("brief", 1.0),))


async def test_a_server_without_heads_serves_strength_zero_and_refuses_to_steer(make_engine, make_client):
    engine = make_engine()
    async with make_client(engine) as client:
        assert (await post(client, None)).status_code == 200
        assert (await post(client, {"strength": 0, "trace": True})).status_code == 200
        response = await post(client, {"strength": 1})
        assert response.status_code == 400
        assert "--heads" in response.json()["error"]["message"]


@pytest.mark.parametrize(
    ("heads", "config", "says"),
    [
        (("kind",), ApiConfig(default_head="bold"), "loaded: kind"),
        ((), ApiConfig(default_strength=1.0), "default head"),
        (("kind", "brief"), ApiConfig(default_strength=1.0), "default head"),
        (("meter",), ApiConfig(default_strength=1.0), "no advantage"),
        (("kind",), ApiConfig(default_strength=float("nan")), "outside"),
    ],
)
async def test_defaults_that_the_heads_cannot_honour_are_refused_at_the_start(
    make_engine, heads, config, says
):
    with pytest.raises(ConfigError, match=says):
        resolve_config(config, make_engine(*heads).info)


@pytest.mark.parametrize(
    ("negative", "rendered"),
    [
        ("rude", "<system>rude<user>hello<assistant>"),
        ([{"role": "developer", "content": "rude"}], "<system>rude<user>hello<assistant>"),
        ([{"role": "user", "content": "bye"}], "<user>bye<assistant>"),
    ],
)
async def test_the_other_prompt_of_a_chat_is_rendered_as_the_first_one_is(
    make_engine, make_client, negative, rendered
):
    engine = make_engine("kind")
    messages = [{"role": "system", "content": "be brief"}, *MESSAGES]
    guidance = {"rule": {"kind": "contrast", "negative_prompt": negative, "gamma": 3, "alpha": None}}
    async with make_client(engine) as client:
        body = {"messages": messages, "guidance": guidance}
        assert (await client.post("/v1/chat/completions", json=body)).status_code == 200
    rule = engine.submitted[0].guidance.rule
    assert engine.tokenizer.decode(rule.negative_prompt) == rendered
    assert (rule.gamma, rule.alpha) == (3, 0)
    assert engine.tokenizer.decode(engine.submitted[0].prompt_token_ids).startswith("<system>be brief")


async def test_a_contrast_is_controlled_without_a_head(make_engine, make_client):
    engine = make_engine()
    async with make_client(engine) as client:
        assert (await post(client, {"rule": contrast(), "max_kl": 0.5})).status_code == 200
    guidance = engine.submitted[0].guidance
    assert (guidance.strength, guidance.heads, guidance.controllers) == (0.0, (), (MaxKL(0.5),))


async def test_the_other_prompt_of_a_completion_is_text(make_engine, make_client):
    engine = make_engine()
    async with make_client(engine) as client:
        guidance = {"rule": contrast()}
        body = {"prompt": ["a", "b"], "guidance": guidance}
        assert (await client.post("/v1/completions", json=body)).status_code == 200
        guidance["rule"]["negative_prompt"] = MESSAGES
        refused = await client.post("/v1/completions", json=body)
    others = [engine.tokenizer.decode(r.guidance.rule.negative_prompt) for r in engine.submitted]
    assert others == ["rude", "rude"]
    assert refused.json()["error"]["param"] == "guidance.rule.negative_prompt"
