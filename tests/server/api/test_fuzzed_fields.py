"""Any value in any field is answered: served or refused by name, and the engine lives on."""

from __future__ import annotations

import asyncio
import json
import math
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_models import SIZES, byte_tokenizer, save_random_head, save_random_model
from transformers import LlamaConfig

from trimtab.guidance.controllers import CONTROLLERS
from trimtab.server.api.app import create_app
from trimtab.server.api.config import ApiConfig
from trimtab.server.api.schemas.chats import ChatRequest
from trimtab.server.api.schemas.completions import CompletionRequest
from trimtab.server.api.schemas.guidance import GuidanceFields
from trimtab.server.engine.async_engine import AsyncEngine
from trimtab.server.engine.config import EngineConfig
from trimtab.server.engine.engine import Engine

MESSAGES = [{"role": "user", "content": "a"}]
POWERS = (7, 8, 15, 16, 31, 32, 53, 63, 64, 127, 128, 1000)
INTEGERS = [sign * (2**power + off) for power in POWERS for off in (-1, 0, 1) for sign in (1, -1)]
FLOATS = [
    *(sign * x for sign in (1, -1) for x in (0.0, 1.0, 1e-45, 1e-46, 1e-40, 1e-38, 5e-324, 1e-6, 9.9e-7)),
    *(sign * x for sign in (1, -1) for x in (0.01, 100.0, 3.4e38, 3.5e38, 1e300, 1.8e308, math.inf)),
    math.nan,
]


class Raw(str):
    """JSON text as it is sent."""


RAW = [Raw(text) for text in ("9" * 5000, "-" + "1" * 400, "1e400", "1E-400", "-0", "1.0", "1e2", "0e0")]
KEYS = ["5", "05", " 5", "+5", "5_0", "5.0", "-1", "-0", "1e1", "259", "260", "9" * 5000, "", "\u0665", "x"]
ODD = [
    True,
    False,
    None,
    "",
    "5",
    "a",
    "\ud800",
    "\x00",
    "🙂" * 100,
    [],
    [[]],
    {},
    {"a": None},
    [5],
    ["a", "b"],
]

scalars = st.sampled_from([*INTEGERS, *FLOATS, *RAW, *ODD, 1, 2, 3])
biases = st.dictionaries(st.sampled_from(KEYS), scalars, max_size=3)
weights = st.dictionaries(st.sampled_from(["kind", "brief", "other", "\ud800"]), scalars, max_size=2)
targets = st.fixed_dictionaries(
    {}, optional={"head": st.sampled_from(["kind", "brief", "other", "\ud800"]) | scalars, "value": scalars}
)
schedules = st.fixed_dictionaries(
    {}, optional={"kind": st.sampled_from(["constant", "warmup", "decay"]) | scalars, "tokens": scalars}
)
controls = dict.fromkeys(("max_kl", "kl_budget", "entropy_gate", "horizon"), scalars)
controls |= {"target": targets | scalars, "schedule": schedules | scalars}
guidances = (
    st.fixed_dictionaries(
        {}, optional=dict.fromkeys((*GuidanceFields.model_fields, *GuidanceFields.NEUTRAL), scalars)
    )
    | st.fixed_dictionaries({"strength": scalars, "heads": weights}, optional={"trace": st.just(True)})
    | st.fixed_dictionaries({"strength": st.sampled_from([5, -5, 1e-6])}, optional=controls)
)
held = st.dictionaries(
    st.sampled_from(["json", "regex", "choice", "grammar", "json_object", "x"]), scalars, max_size=2
)
formats = st.fixed_dictionaries(
    {"type": st.sampled_from(["text", "json_object", "json_schema", 5])},
    optional={"json_schema": scalars | st.fixed_dictionaries({"name": scalars, "schema": scalars})},
)
prompts = scalars | st.lists(scalars, max_size=3) | st.lists(st.lists(scalars, max_size=2), max_size=2)


def bodies(kind: type[Any], own: dict[str, Any]) -> st.SearchStrategy[dict[str, Any]]:
    """Most often one field out of line, so that what lies behind the first check is reached."""
    names = [*kind.model_fields, *kind.NEUTRAL]
    strategies: dict[str, st.SearchStrategy[Any]] = dict.fromkeys(names, scalars)
    strategies |= {"logit_bias": biases | scalars, "guidance": guidances | scalars, **own}
    strategies |= {"structured_outputs": held | scalars, "response_format": formats | scalars}
    few = st.lists(st.sampled_from(names), max_size=3, unique=True)
    return few.flatmap(lambda chosen: st.fixed_dictionaries({name: strategies[name] for name in chosen}))


chats = bodies(ChatRequest, {}).map(lambda body: {"messages": MESSAGES, "max_tokens": 3, **body})
completions = bodies(CompletionRequest, {"prompt": prompts}).map(
    lambda body: {"prompt": "a", "max_tokens": 3, **body}
)


def mostly(strategy: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    return st.integers(0, 12).flatmap(lambda drawn: strategy if drawn else scalars)


names = mostly(st.sampled_from(["f", "g"]))
schemas = st.sampled_from([{}, {"properties": {"a": {"enum": [1]}}}, {"type": "object", "not": {}}])
functions = st.fixed_dictionaries(
    {"name": names}, optional={"parameters": mostly(schemas), "strict": mostly(st.booleans())}
)
tools = st.fixed_dictionaries({"type": st.just("function"), "function": mostly(functions)})
named = st.fixed_dictionaries(
    {"type": st.just("function"), "function": st.fixed_dictionaries({"name": names})}
)
called = st.fixed_dictionaries({"name": names, "arguments": mostly(st.sampled_from(["", "{", '{"a": 1}']))})
calls = st.fixed_dictionaries({"id": mostly(st.just("x")), "function": mostly(called)})
turns = st.sampled_from(
    [
        {"role": st.just("user"), "content": st.just("a")},
        {"role": st.just("assistant"), "content": scalars},
        {"role": st.just("assistant"), "tool_calls": st.lists(mostly(calls), min_size=1, max_size=2)},
        {"role": st.just("tool"), "content": st.just("a"), "tool_call_id": mostly(st.just("x"))},
    ]
).flatmap(st.fixed_dictionaries)
calling = st.fixed_dictionaries(
    {"messages": st.lists(turns, min_size=1, max_size=3), "tools": mostly(st.lists(tools, max_size=2))},
    optional={
        "tool_choice": mostly(st.sampled_from(["none", "auto", "required"]) | named),
        "parallel_tool_calls": mostly(st.booleans()),
        "stream": st.booleans(),
        "response_format": mostly(st.just({"type": "json_object"})),
    },
)


def write(value: Any) -> str:
    """JSON, with raw texts, bare NaN and infinity, and integers of any length."""
    if isinstance(value, Raw):
        return str(value)
    if isinstance(value, dict):
        return "{" + ",".join(f"{json.dumps(key)}:{write(item)}" for key, item in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ",".join(map(write, value)) + "]"
    return json.dumps(value)


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[AsyncEngine]:
    folder = save_random_model(LlamaConfig(**SIZES), tmp_path_factory.mktemp("policy"))
    tokenizer = byte_tokenizer()
    tokenizer.chat_template = (
        "{{ tools | length if tools else '' }}{# <tool_call> #}{% for m in messages %}{{ m['content'] }}"
        "{% for c in m.tool_calls or [] %}{{ c.function.arguments }}{% endfor %}{% endfor %}>"
    )
    tokenizer.save_pretrained(folder)
    save_random_head(folder / "heads", folder, "kind", seed=1, slope=0.5)
    save_random_head(folder / "heads", folder, "brief", form="lowrank", seed=2)
    config = EngineConfig(
        folder, (folder / "heads/kind", folder / "heads/brief"), kv_cache_gib=0.01, max_model_len=32
    )
    engine = AsyncEngine(lambda: Engine.from_config(config))
    engine.start()
    engine.wait_until_loaded()
    yield engine
    engine.stop()


class Poster:
    """Posts to the application in one event loop, which the engine delivers to."""

    def __init__(self, engine: AsyncEngine) -> None:
        app = create_app(engine, engine.engine.policy.tokenizer, ApiConfig(default_head="kind"))
        self._client = httpx.AsyncClient(
            transport=httpx.ASGITransport(app, raise_app_exceptions=True), base_url="http://trimtab"
        )
        self._runner = asyncio.Runner()

    def close(self) -> None:
        self._runner.run(self._client.aclose())
        self._runner.close()

    def __call__(self, path: str, content: bytes) -> httpx.Response:
        headers = {"content-type": "application/json"}
        return self._runner.run(self._client.post(path, content=content, headers=headers))


@pytest.fixture(scope="module")
def post(engine: AsyncEngine) -> Iterator[Poster]:
    poster = Poster(engine)
    yield poster
    poster.close()


def check(engine: AsyncEngine, post: Poster, path: str, body: dict[str, Any]) -> None:
    response = post(path, write(body).encode())
    assert response.status_code in (200, 400, 404), response.text
    if response.headers["content-type"].startswith("text/event-stream"):
        assert response.text.endswith("data: [DONE]\n\n")
        assert '"error"' not in response.text
    elif response.status_code == 200:
        assert response.json()["choices"]
    else:
        error = response.json()["error"]
        assert set(error) == {"message", "type", "param", "code"}
        assert error["type"] == "invalid_request_error"
        assert error["param"], error
        assert len(error["message"]) < 600
    assert engine.status == "ready"


@settings(max_examples=250, deadline=None)
@given(body=chats)
def test_any_chat_is_served_or_refused_by_the_name_of_a_field(
    engine: AsyncEngine, post: Poster, body: dict[str, Any]
):
    check(engine, post, "/v1/chat/completions", body)


@settings(max_examples=100, deadline=None)
@given(body=calling)
def test_any_tools_are_served_or_refused_by_the_name_of_a_field(
    engine: AsyncEngine, post: Poster, body: dict[str, Any]
):
    check(engine, post, "/v1/chat/completions", {"max_tokens": 3, **body})


@settings(max_examples=250, deadline=None)
@given(body=completions)
def test_any_completion_is_served_or_refused_by_the_name_of_a_field(
    engine: AsyncEngine, post: Poster, body: dict[str, Any]
):
    check(engine, post, "/v1/completions", body)


@pytest.mark.parametrize("value", [1e-45, 1e-46, 1e-40, 5e-324, 1e-7, 1e-6, 9.99e-7, 1e-3])
@pytest.mark.parametrize(
    "field",
    ["temperature", "top_p", "min_p", "strength", "weight", "bias", "max_kl", "kl_budget", "entropy_gate"],
)
def test_the_smallest_numbers_are_served_with_finite_figures(
    engine: AsyncEngine, post: Poster, field: str, value: float
):
    guidance: dict[str, Any] = {
        "strength": value if field == "strength" else 2,
        "heads": {"kind": value if field == "weight" else 1, "brief": 1},
        "trace": True,
    }
    body: dict[str, Any] = {"prompt": "a", "max_tokens": 4, "seed": 1, "logprobs": 2, "guidance": guidance}
    if field == "bias":
        body["logit_bias"] = {"5": value}
    elif field in CONTROLLERS:
        guidance[field] = value
    elif field not in ("strength", "weight"):
        body[field] = value
    response = post("/v1/completions", write(body).encode())
    assert response.status_code == 200, response.text
    choice = response.json()["choices"][0]
    entries = choice["guidance"]["trace"]
    figures = [entry[name] for entry in entries for name in ("kl", "entropy", "logprob", "base_logprob")]
    assert all(math.isfinite(figure) for figure in figures)
    assert choice["guidance"]["kl"] >= 0
