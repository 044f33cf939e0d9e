"""Two engines behind Ray Serve's ingress: one that dies takes its own streams along and nothing else; clients
that leave free what they had, and who comes when all is full is told so before a reply begins."""

from __future__ import annotations

import json
import os
import socket
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import httpx
import openai
import pytest
from tiny_models import SIZES, save_random_model
from transformers import LlamaConfig

ray = pytest.importorskip("ray", reason="Ray Serve is an extra: pip install trimtab[ray]")
serve = pytest.importorskip("ray.serve", reason="Ray Serve is an extra: pip install trimtab[ray]")

pytestmark = pytest.mark.timeout(180)  # of which an idle machine takes a third
BODY = {"prompt": "a", "ignore_eos": True, "temperature": 0}
ROWS, QUEUED = 4, 8  # Ray counts who comes at the same time as queued, even where there is room
LONG = 1500  # tokens, which take seconds
CROWD = 60


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A service with two engines, on this machine alone."""
    os.environ |= {"RAY_USAGE_STATS_ENABLED": "0", "RAY_AUTH_MODE": "disabled", "OMP_NUM_THREADS": "1"}
    from trimtab.server.cluster.app import build  # noqa: PLC0415 (needs Ray)

    model = save_random_model(
        LlamaConfig(**SIZES | {"max_position_embeddings": 8192}), tmp_path_factory.mktemp("model")
    )
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    ray.init(
        address="local",
        num_cpus=4,
        include_dashboard=False,
        object_store_memory=200 * 2**20,
        log_to_driver=False,
    )
    try:
        serve.start(http_options={"host": "127.0.0.1", "port": port})
        args = {"model": str(model), "compile": "off", "min_replicas": 2, "max_replicas": 2}
        args |= {"max_num_seqs": ROWS, "max_queued_requests": QUEUED, "served_model_name": "tiny"}
        serve.run(build(args), name="trimtab", route_prefix="/")
        url = f"http://127.0.0.1:{port}"
        wait_for(lambda: httpx.get(f"{url}/health").status_code == 200)
        yield url
    finally:
        serve.shutdown()
        ray.shutdown()


@pytest.fixture
def pool() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(CROWD) as pool:
        yield pool


def wait_for(holds: Callable[[], bool], seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.1)


def engines() -> dict[str, Any]:
    """The processes of the engines, by their names."""
    names = [actor["name"] for actor in ray.util.list_named_actors(all_namespaces=True)]
    return {name: ray.get_actor(name, namespace="serve") for name in names if "#Engine#" in name}


def are_idle() -> bool:
    stats = serve.get_deployment_handle("Engine", "trimtab").broadcast("stats").results(timeout_s=10)
    assert stats
    return all(s.num_running == s.num_waiting == s.cache_usage == 0 for s in stats)


def stream(url: str, max_tokens: int, started: list[int]) -> tuple[httpx.Response, list[Any]]:
    """An answer, and of a stream its events; `started` grows with its first."""
    events = []
    body = {**BODY, "max_tokens": max_tokens, "stream": True}
    with httpx.stream("POST", f"{url}/v1/completions", json=body, timeout=60) as response:
        if response.status_code != 200:
            response.read()
            return response, []
        for line in filter(None, response.iter_lines()):
            data = line.removeprefix("data: ")
            events.append(data if data == "[DONE]" else json.loads(data))
            if len(events) == 1:
                started.append(1)
    return response, events


def ending(events: list[Any]) -> str:
    """How a stream ended, which it did once."""
    assert events[-1] == "[DONE]"
    failures = [event for event in events[:-1] if "error" in event]
    reasons = [e["choices"][0]["finish_reason"] for e in events[:-1] if "choices" in e]
    ends = [reason for reason in reasons if reason is not None]
    assert len(failures) + len(ends) == 1
    if failures:
        assert failures == events[-2:-1]
        assert failures[0]["error"]["code"] == "engine_failed"
        return "error"
    return ends[0]


def test_an_engine_that_is_killed_ends_its_own_streams_alone_and_service_goes_on(
    url: str, pool: ThreadPoolExecutor
):
    started: list[int] = []
    streams: list[Future[Any]] = [pool.submit(stream, url, LONG, started) for _ in range(2 * ROWS)]
    wait_for(lambda: len(started) == len(streams))
    before = engines()
    assert len(before) == 2
    ray.kill(next(iter(before.values())))
    client = openai.OpenAI(base_url=f"{url}/v1", api_key="-", max_retries=5)
    meanwhile = client.completions.create(model="tiny", prompt="a", max_tokens=5)
    assert meanwhile.choices[0].finish_reason in ("length", "stop")
    endings = [ending(future.result()[1]) for future in streams]
    assert sorted(set(endings)) == ["error", "length"]
    wait_for(lambda: len(engines().keys() - before.keys()) == 1)
    wait_for(are_idle)


def test_who_comes_when_all_is_full_is_told_to_come_back_before_a_reply_begins(
    url: str, pool: ThreadPoolExecutor
):
    answers = [f.result() for f in [pool.submit(stream, url, 500, []) for _ in range(CROWD)]]
    refused = [response for response, events in answers if not events]
    assert 0 < len(refused) < CROWD
    for response in refused:
        assert response.status_code == 429, response.text
        assert response.headers["retry-after"]
        assert response.json()["error"]["code"] == "queue_full"
    assert {ending(events) for _, events in answers if events} == {"length"}


def test_a_client_that_leaves_frees_its_blocks(url: str):
    wait_for(are_idle)
    body = {**BODY, "max_tokens": LONG, "stream": True}
    for _ in range(2):
        with httpx.stream("POST", f"{url}/v1/completions", json=body) as response:
            lines = response.iter_lines()
            assert "text" in next(lines)
            assert not are_idle()
    wait_for(are_idle, 5)


def test_one_id_names_a_request_and_bad_ones_are_refused_as_by_one_server(url: str):
    answer = httpx.post(f"{url}/v1/completions", json={**BODY, "top_p": 2}, headers={"X-Request-Id": "mine"})
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, "top_p")
    assert answer.headers.get_list("x-request-id") == ["mine"]
    refused = httpx.post(f"{url}/v1/completions", json={**BODY, "guidance": {"heads": {"none": 1}}})
    assert (refused.status_code, refused.json()["error"]["param"]) == (400, "guidance.heads.none")
