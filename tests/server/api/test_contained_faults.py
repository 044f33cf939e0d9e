"""An exception in any function of the API ends its own request in one proper error, and leaves nothing."""

from __future__ import annotations

import asyncio
import itertools
import json
import logging
import re
from collections.abc import Callable
from concurrent.futures import Executor, Future
from types import CodeType
from typing import Any

import httpx
import pytest
from fault_injection import Fault, calls_of, name_of

from trimtab.server.api.app import create_app
from trimtab.server.api.config import ApiConfig
from trimtab.server.api.schemas.guidance import GuidanceFields

# A fault at the end of a generator that nobody reads on can be told to no one.
pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")

OURS = ("/server/api/",)
ERRORS = (RuntimeError, KeyError, MemoryError, ZeroDivisionError, AttributeError)
CONTAINMENT = {"abort", "leave", "__exit__", "_respond", "describe", "body", "_writable", "describe_failure"}
CONTAINMENT |= {"send_with_id", "watch", "begin", "json", "<lambda>"}
"""What ends a request for others, tells of it, or sends: a fault at its own call can be told to no one."""

CALL = '<tool_call>\n{"name": "f", "arguments": {"a": 1}}\n</tool_call>'
TOOL = {
    "type": "function",
    "function": {"name": "f", "parameters": {"properties": {"a": {"type": "integer"}}}},
}
USER, TRACED = {"role": "user", "content": "hello"}, {"strength": 1.0, "heads": {"kind": 1}, "trace": True}
CHAT = {"messages": [USER], "max_tokens": 80}
REQUESTS: dict[str, tuple[str, dict[str, Any] | None]] = {
    "chat": ("/v1/chat/completions", {**CHAT, "logprobs": True, "top_logprobs": 2, "guidance": TRACED}),
    "chat, streamed": ("/v1/chat/completions", {**CHAT, "n": 2, "stream": True, "guidance": TRACED}),
    "profile": ("/v1/chat/completions", {**CHAT, "model": "script:kinder"}),
    "tools": ("/v1/chat/completions", {**CHAT, "tools": [TOOL], "tool_choice": "required"}),
    "tools, streamed": ("/v1/chat/completions", {**CHAT, "tools": [TOOL], "stream": True}),
    "grammar": ("/v1/completions", {"prompt": "a", "max_tokens": 80, "guided_choice": [CALL, "b"]}),
    "contrast": (
        "/v1/chat/completions",
        {**CHAT, "guidance": {"rule": {"kind": "contrast", "negative_prompt": "bad"}, "max_kl": 1.0}},
    ),
    "best of some": ("/v1/chat/completions", {**CHAT, "best_of": 3, "guidance": {"heads": {"kind": 1}}}),
    "majority": ("/v1/chat/completions", {**CHAT, "best_of": 2, "majority": {"pattern": "a"}}),
    "completions": ("/v1/completions", {"prompt": ["a", [5, 6]], "logprobs": 1, "echo": True}),
    "completions, streamed": ("/v1/completions", {"prompt": ["a", "b"], "stream": True, "stop": "z"}),
    "prompt logprobs": ("/v1/completions", {"prompt": "abc", "max_tokens": 0, "prompt_logprobs": 1}),
    "response": ("/v1/responses", {"input": "hello", "guidance": TRACED}),
    "response, streamed": ("/v1/responses", {"input": [USER], "tools": [], "stream": True}),
    "score": ("/v1/score", {"messages": [USER, {"role": "assistant", "content": "yo"}]}),
    "tokenize": ("/tokenize", {"messages": [USER], "return_token_strs": True}),
    "detokenize": ("/detokenize", {"tokens": [64]}),
    "models": ("/v1/models", None),
    "model": ("/v1/models/script", None),
    "tokenizer info": ("/tokenizer_info", None),
    "metrics": ("/metrics", None),
    "health": ("/health", None),
}


class Inline(Executor):
    """Does its work in the thread that asks, where the faults are."""

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        done: Future[Any] = Future()
        try:
            done.set_result(fn(*args, **kwargs))
        except Exception as error:
            done.set_exception(error)
        return done


@pytest.fixture
def engine(make_scripted):
    return make_scripted(CALL)


def connected(engine: Any) -> httpx.AsyncClient:
    profiles = {"kinder": GuidanceFields(strength=2.0, heads={"kind": 1.0})}
    app = create_app(engine, engine.tokenizer, ApiConfig(default_head="kind", profiles=profiles))
    app.state.service.encoding._threads = Inline()
    transport = httpx.ASGITransport(app, raise_app_exceptions=False)
    return httpx.AsyncClient(transport=transport, base_url="http://trimtab")


async def send(client: httpx.AsyncClient, name: str) -> httpx.Response:
    path, body = REQUESTS[name]
    return await (client.get(path) if body is None else client.post(path, json=body))


def plain(text: str) -> str:
    """Without what differs from one reply to the next."""
    return re.sub(r'(-|_)[0-9a-f]{24,32}|"(created|created_at|completed_at)":[0-9.]+', "", text)


def error_of(response: httpx.Response) -> dict[str, Any]:
    """The one error that a reply ends with."""
    if not response.headers["content-type"].startswith("text/event-stream"):
        assert response.status_code == 500
        return response.json()["error"]
    assert response.status_code == 200
    lines = [line.removeprefix("data: ") for line in response.text.splitlines() if line.startswith("data: ")]
    if lines[-1] == "[DONE]":
        errors = [json.loads(line) for line in lines[:-1] if '"error"' in line[:10]]
        assert json.loads(lines[-2]) == errors[0]
        assert len(errors) == 1
        return errors[0]["error"]
    assert [json.loads(line)["type"] for line in lines].count("response.failed") == 1
    last = json.loads(lines[-1])
    assert last["type"] == "response.failed"
    return last["response"]["error"]


def is_struck(code: CodeType) -> bool:
    is_ours = "/tests/" not in code.co_filename
    is_streaming = code.co_qualname.startswith("GenerationStream.")  # it sends what containment has written
    return is_ours and code.co_name not in CONTAINMENT and not is_streaming


async def functions_of(client: httpx.AsyncClient, name: str) -> list[tuple[CodeType, int]]:
    with calls_of(OURS) as calls:
        await send(client, name)
    found = ((code, n) for code, n in calls.items() if is_struck(code))
    return sorted(found, key=lambda item: name_of(item[0]))


async def strike_each(client: httpx.AsyncClient, engine: Any, every: int) -> list[str]:
    """A fault in every so-many-th function of every request."""
    kinds, struck, tasks = itertools.cycle(ERRORS), list[str](), asyncio.all_tasks()
    for at, name in enumerate(REQUESTS):
        want = await send(client, name)
        assert want.status_code == 200, name
        for code, count in (await functions_of(client, name))[at % every :: every]:
            kind = next(kinds)
            told = f"{name}: {kind.__name__} in {name_of(code)}"
            with Fault(code, count // 2, kind("secret")) as fault:
                got = await send(client, name)
            try:
                assert fault.has_struck
                is_page = name == "metrics" and got.status_code == 200
                if not is_page and plain(got.text) != plain(want.text):
                    assert error_of(got)["message"].startswith("internal error")
                    struck.append(told)
                assert "secret" not in got.text
                for _ in range(10):  # abandoned generators are closed in the loop's time
                    await asyncio.sleep(0)
                assert engine.running == {}
                assert asyncio.all_tasks() <= tasks
                again = await send(client, name)
                assert name == "metrics" or plain(again.text) == plain(want.text)
            except (AssertionError, KeyError, IndexError, ValueError) as error:
                raise AssertionError(f"{told}: {error}\n{got.status_code} {got.text[-300:]}") from error
    return struck


def strike(engine: Any, every: int) -> list[str]:
    async def run() -> list[str]:
        async with connected(engine) as client:
            return await strike_each(client, engine, every)

    return asyncio.run(run())


def test_a_fault_in_some_functions_of_the_api_ends_its_request_alone(engine, caplog):
    caplog.set_level(logging.CRITICAL)
    assert len(strike(engine, every=25)) > 60


@pytest.mark.slow
def test_a_fault_in_any_function_of_the_api_ends_its_request_alone(engine, caplog):
    caplog.set_level(logging.CRITICAL)
    assert len(strike(engine, every=1)) > 1500
