"""How `trimtab serve` ends: on a signal every reply gets its end, and so it does when the engine dies."""

from __future__ import annotations

import json
import os
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
from tiny_models import SIZES, byte_tokenizer, save_random_model
from transformers import LlamaConfig

SLOW_SERVER = """
import os, sys, time
import torch
from trimtab.server.engine.model_runner import ModelRunner
from trimtab.server.cli import main

run = ModelRunner.run

def slowly(self, step):
    time.sleep(0.05)
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
    tokenizer.chat_template = "{% for m in messages %}{{ m['content'] }}{% endfor %}>"
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture
def serve(policy: Path, tmp_path: Path) -> Iterator[Callable[..., Served]]:
    """Starts a server whose steps last, and whose device fails once the file `fault` is there."""
    started: list[Served] = []

    def start(*flags: object) -> Served:
        fault = tmp_path / "fault"
        program = [
            sys.executable,
            "-c",
            SLOW_SERVER,
            fault,
            "serve",
            "--model",
            policy,
            "--port",
            "0",
            *flags,
        ]
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        process = subprocess.Popen(
            list(map(str, program)),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=environment,
        )
        assert process.stdout is not None
        url = re.search(r"http://\S+?:\d+", process.stdout.readline())
        assert url is not None
        while "try" not in (line := process.stdout.readline()):
            assert line, process.communicate()[1]
        started.append(Served(process, url[0], fault, ThreadPoolExecutor(8)))
        return started[-1]

    yield start
    for served in started:
        served.process.kill()
        served.process.communicate()
        served.pool.shutdown()


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
    streaming, whole = served.stream(40), served.whole(40)
    time.sleep(0.3)
    served.tell(number)
    wait_until(lambda: httpx.get(f"{served.url}/health").status_code == 503)
    late = httpx.post(served.url + CHAT, json=BODY)
    assert (late.status_code, late.json()["error"]["message"]) == (503, "the server is shutting down")
    assert int(late.headers["retry-after"]) > 0
    *_, last, done = streaming.result()
    assert json.loads(last)["choices"][0]["finish_reason"] == "length"
    assert done == "[DONE]"
    assert whole.result().json()["usage"]["completion_tokens"] == 40
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
    time.sleep(0.5)
    start = time.monotonic()
    served.tell(number)
    assert "shutting down" in assert_cut_off(streaming.result())
    assert "shutting down" in client.result()
    response = whole.result()
    assert (response.status_code, response.json()["error"]["code"]) == (503, "shutting_down")
    assert end_of(served)[0] == 0
    assert time.monotonic() - start < 4


@pytest.mark.slow
def test_a_second_signal_ends_replies_at_once(serve):
    served = serve("--drain", 60)
    streaming, whole = served.stream(100), served.whole(100)
    time.sleep(0.2)
    served.tell(signal.SIGTERM)
    wait_until(lambda: httpx.get(f"{served.url}/health").status_code == 503)
    assert not streaming.done()
    served.tell(signal.SIGTERM)
    assert "shutting down" in assert_cut_off(streaming.result())
    assert whole.result().status_code == 503
    assert end_of(served)[0] == 0


def test_a_dead_engine_ends_its_streams_and_then_the_process(serve):
    served = serve()
    streaming, whole = served.stream(100), served.whole(100)
    time.sleep(0.2)
    served.fault.touch()
    assert "died" in assert_cut_off(streaming.result())
    health = httpx.get(f"{served.url}/health")
    assert (health.status_code, "died" in health.json()["reason"]) == (503, True)
    assert whole.result().status_code == 500
    code, errors = end_of(served)
    assert code == 1
    assert "AcceleratorError: a secret" in errors
    assert "CRITICAL trimtab.server.commands.serve.main: the engine has died" in errors.splitlines()[-1]
