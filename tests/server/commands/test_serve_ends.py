"""How `trimtab serve` ends: on a signal every reply gets its end, and so it does when the engine dies."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
from served_process import start_process
from tiny_models import SIZES, byte_tokenizer, save_random_head, save_random_model
from transformers import LlamaConfig

SLOW_SERVER = """
import os, sys, time
import torch
from trimtab.server.engine.model_runner import ModelRunner
from trimtab.server.cli import main

run = ModelRunner.run

def slowly(self, step):
    time.sleep(float(os.environ.get("STEP_SECONDS", 0.05)))
    if os.path.exists(sys.argv[1]):
        raise torch.AcceleratorError("a secret")
    return run(self, step)

ModelRunner.run = slowly
sys.exit(main(sys.argv[2:]))
"""
BODY = {"messages": [{"role": "user", "content": "a"}], "ignore_eos": True}
CHAT = "/v1/chat/completions"


@dataclass
class Served:
    process: subprocess.Popen[str]
    url: str
    fault: Path
    pool: ThreadPoolExecutor

    def stream(self, max_tokens: int) -> Future[list[str]]:
        """The data lines of a stream, to the proper end of its chunks, once its first has come."""
        lines: list[str] = []

        def read() -> list[str]:
            body = {**BODY, "max_tokens": max_tokens, "stream": True}
            with httpx.stream("POST", self.url + CHAT, json=body, timeout=60) as response:
                for line in response.iter_lines():
                    lines.extend([line.removeprefix("data: ")] if line else [])
            return lines

        reading = self.pool.submit(read)
        wait_until(lambda: len(lines) > 2)
        return reading

    def whole(self, max_tokens: int) -> Future[httpx.Response]:
        body = {**BODY, "max_tokens": max_tokens}
        return self.pool.submit(httpx.post, self.url + CHAT, json=body, timeout=60)

    def has_replies(self, least: int) -> bool:
        """Whether the engine works on so many, or has them waiting."""
        page = httpx.get(f"{self.url}/metrics").text
        counts = re.findall(r"vllm:num_requests_(?:running|waiting)\{[^}]*\} (\S+)", page)
        return sum(map(float, counts)) >= least

    def tell(self, number: int) -> None:
        self.process.send_signal(number)


def wait_until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.01)


@pytest.fixture(scope="module")
def policy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = save_random_model(LlamaConfig(**SIZES), tmp_path_factory.mktemp("policies") / "tiny")
    tokenizer = byte_tokenizer()
    tokenizer.chat_template = (
        "{% if tools %}{{ tools[0].function.name }}{% endif %}"
        "{% for m in messages %}{{ m['content'] }}{% endfor %}>"
    )
    tokenizer.save_pretrained(folder)
    return folder


def start_server(policy: Path, fault: Path, *flags: object, step: float = 0.05) -> Served:
    """A server whose steps last so many seconds, and whose device fails once the file `fault` is there."""
    program = [sys.executable, "-c", SLOW_SERVER, fault, "serve", "--model", policy, "--port", "0", *flags]
    process, url = start_process(program, {"STEP_SECONDS": str(step)})
    return Served(process, url, fault, ThreadPoolExecutor(32))


def end(served: Served) -> None:
    served.process.kill()
    served.process.communicate()
    served.pool.shutdown()


@pytest.fixture
def serve(policy: Path, tmp_path: Path) -> Iterator[Callable[..., Served]]:
    started: list[Served] = []

    def start(*flags: object) -> Served:
        started.append(start_server(policy, tmp_path / "fault", *flags))
        return started[-1]

    yield start
    for served in started:
        end(served)


def assert_cut_off(lines: list[str]) -> str:
    """The stream's last words are an error object and [DONE]; its message."""
    *chunks, error, done = lines
    assert all("choices" in json.loads(chunk) for chunk in chunks)
    assert done == "[DONE]"
    return json.loads(error)["error"]["message"]


def end_of(served: Served) -> tuple[int, str]:
    errors = served.process.communicate(timeout=30)[1]
    assert "Traceback" not in errors or "secret" in errors, errors
    return served.process.returncode, errors


@pytest.mark.parametrize(
    "number", [signal.SIGTERM, pytest.param(signal.SIGINT, marks=pytest.mark.slow)], ids=lambda n: n.name
)
def test_a_signal_lets_replies_end_and_turns_the_rest_away(serve, number):
    served = serve()
    streaming, whole = served.stream(60), served.whole(60)
    wait_until(lambda: served.has_replies(2))
    served.tell(number)
    wait_until(lambda: httpx.get(f"{served.url}/health").status_code == 503)
    late = httpx.post(served.url + CHAT, json=BODY)
    assert (late.status_code, late.json()["error"]["message"]) == (503, "the server is shutting down")
    assert int(late.headers["retry-after"]) > 0
    *_, last, done = streaming.result()
    assert json.loads(last)["choices"][0]["finish_reason"] == "length"
    assert done == "[DONE]"
    assert whole.result().json()["usage"]["completion_tokens"] == 60
    assert end_of(served)[0] == 0


def read_with_openai(url: str) -> str:
    client = openai.OpenAI(base_url=f"{url}/v1", api_key="unused", max_retries=0)
    try:
        stream: Any = client.chat.completions.create(
            model="tiny",
            messages=BODY["messages"],
            max_tokens=100,
            stream=True,
            extra_body={"ignore_eos": True},
        )
        for _ in stream:
            pass
    except openai.APIError as error:
        return error.message
    return "no error"


@pytest.mark.parametrize(
    "number", [signal.SIGINT, pytest.param(signal.SIGTERM, marks=pytest.mark.slow)], ids=lambda n: n.name
)
def test_what_outlasts_the_timeout_ends_with_an_error(serve, number):
    served = serve("--drain", 0.3)
    streaming, whole = served.stream(100), served.whole(100)
    client = served.pool.submit(read_with_openai, served.url)
    wait_until(lambda: served.has_replies(3))
    start = time.monotonic()
    served.tell(number)
    assert "shutting down" in assert_cut_off(streaming.result())
    assert "shutting down" in client.result()
    response = whole.result()
    assert (response.status_code, response.json()["error"]["code"]) == (503, "shutting_down")
    assert end_of(served)[0] == 0
    assert time.monotonic() - start < 4


WEATHER = {"type": "function", "function": {"name": "weather", "parameters": {"type": "object"}}}
LONG = {"ignore_eos": True, "max_tokens": 90}
CALLING = {"messages": BODY["messages"], "tools": [WEATHER], "tool_choice": "required", "max_tokens": 90}
OF_HEAD = {"heads": {"kind": 1}, "strength": 1}
ROUTES: dict[str, tuple[str, dict[str, Any]]] = {
    "chat": (CHAT, {**BODY, **LONG}),
    "chat, n": (CHAT, {**BODY, **LONG, "n": 2}),
    "chat, tools": (CHAT, CALLING),
    "chat, guided": (CHAT, {**BODY, **LONG, "guidance": OF_HEAD}),
    "chat, lookahead": (CHAT, {**BODY, **LONG, "guidance": {**OF_HEAD, "rule": {"kind": "lookahead"}}}),
    "chat, blockwise": (CHAT, {**BODY, **LONG, "guidance": {**OF_HEAD, "rule": {"kind": "blockwise"}}}),
    "completions": ("/v1/completions", {"prompt": "a", **LONG}),
    "completions, several": ("/v1/completions", {"prompt": ["a", "b"], "n": 2, **LONG}),
    "responses": ("/v1/responses", {"input": "a", "max_output_tokens": 90, "ignore_eos": True}),
    "responses, tools": (
        "/v1/responses",
        {
            "input": "a",
            "max_output_tokens": 90,
            "tools": [{"type": "function", **WEATHER["function"]}],
            "tool_choice": "required",
        },
    ),
}
WHOLE: dict[str, tuple[str, dict[str, Any]]] = {
    **ROUTES,
    "chat, best of": (CHAT, {**BODY, **LONG, "best_of": 2}),
    "chat, prompt": (CHAT, {**BODY, **LONG, "prompt_logprobs": 1}),
    "completions, echo": ("/v1/completions", {"prompt": "ab", **LONG, "echo": True, "logprobs": 1}),
}


@dataclass
class Cut:
    """What came of requests of every kind that a second signal found under way."""

    streams: dict[str, list[str]]
    wholes: dict[str, httpx.Response]
    score: httpx.Response
    seconds: float
    probes: dict[str, httpx.Response]
    code: int
    errors: str


@pytest.fixture(scope="module")
def cut(policy: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cut]:
    head = save_random_head(tmp_path_factory.mktemp("heads"), policy, "kind")
    flags = ("--heads", head, "--drain", 60, "--tool-call-parser", "hermes")
    served = start_server(policy, policy / "no fault", *flags, step=0.2)
    client = httpx.Client(base_url=served.url, timeout=60, verify=False)
    lines: dict[str, list[str]] = {name: [] for name in ROUTES}

    def read(name: str) -> None:
        path, body = ROUTES[name]
        with client.stream("POST", path, json=body | {"stream": True}) as response:
            assert response.status_code == 200, response.read()
            for line in response.iter_lines():
                lines[name].extend([line] if line else [])

    def post(path: str, body: dict[str, Any]) -> httpx.Response:
        return client.post(path, json=body)

    try:
        streaming = [served.pool.submit(read, name) for name in ROUTES]
        wholes = {name: served.pool.submit(post, *request) for name, request in WHOLE.items()}
        wait_until(lambda: all(len(found) > 2 for found in lines.values()))
        wait_until(lambda: served.has_replies(len(ROUTES) + len(WHOLE)))
        time.sleep(0.2)
        answer = {"messages": [*BODY["messages"], {"role": "assistant", "content": "b" * 100}]}
        score = served.pool.submit(post, "/v1/score", answer)
        time.sleep(0.03)
        served.tell(signal.SIGTERM)
        wait_until(lambda: client.get("/ready").status_code == 503)
        probes = {path: client.get(path) for path in ("/live", "/ready", "/health", "/ping")}
        probes |= {path: post(path, body) for path, body in ROUTES.values()}
        assert not any(each.done() for each in (*streaming, *wholes.values()))
        start = time.monotonic()
        served.tell(signal.SIGINT)
        for each in streaming:
            each.result()
        told = {name: each.result() for name, each in wholes.items()}
        seconds = time.monotonic() - start
        code, errors = end_of(served)
        yield Cut(lines, told, score.result(), seconds, probes, code, errors)
    finally:
        client.close()
        end(served)


def test_a_second_signal_ends_everything_at_once_with_status_0(cut: Cut):
    assert cut.seconds < 4
    assert cut.code == 0
    assert "Traceback" not in cut.errors


def test_while_streams_drain_the_server_lives_and_takes_nothing_more(cut: Cut):
    assert cut.probes.pop("/live").status_code == 200
    for path, reply in cut.probes.items():
        assert reply.status_code == 503, path
        assert int(reply.headers["retry-after"]) > 0


@pytest.mark.parametrize("name", [name for name in ROUTES if "responses" not in name])
def test_a_stream_that_is_cut_off_ends_with_an_error_and_done(cut: Cut, name: str):
    assert "shutting down" in assert_cut_off([line.removeprefix("data: ") for line in cut.streams[name]])


@pytest.mark.parametrize("name", [name for name in ROUTES if "responses" in name])
def test_a_response_that_is_cut_off_ends_with_its_own_event(cut: Cut, name: str):
    *_, kind, data = cut.streams[name]
    assert kind == "event: response.failed"
    response = json.loads(data.removeprefix("data: "))["response"]
    assert response["status"] == "failed"
    assert "shutting down" in response["error"]["message"]


@pytest.mark.parametrize("name", WHOLE)
def test_a_whole_reply_that_is_cut_off_is_a_503(cut: Cut, name: str):
    reply = cut.wholes[name]
    assert (reply.status_code, reply.json()["error"]["code"]) == (503, "shutting_down")
    assert int(reply.headers["retry-after"]) > 0


def test_a_score_is_told_or_its_end_is(cut: Cut):
    assert cut.score.status_code in (200, 503)
    assert ("tokens" in cut.score.json()) == (cut.score.status_code == 200)


def test_a_dead_engine_ends_its_streams_and_then_the_process(serve):
    served = serve()
    streaming, whole = served.stream(100), served.whole(100)
    wait_until(lambda: served.has_replies(2))
    served.fault.touch()
    assert "died" in assert_cut_off(streaming.result())
    health = httpx.get(f"{served.url}/health")
    assert (health.status_code, "died" in health.json()["reason"]) == (503, True)
    assert whole.result().status_code == 500
    code, errors = end_of(served)
    assert code == 1
    assert "AcceleratorError: a secret" in errors
    assert "CRITICAL trimtab.server.commands.serve.main: the engine has died" in errors.splitlines()[-1]
