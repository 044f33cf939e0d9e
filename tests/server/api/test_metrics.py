"""Metrics as Prometheus reads them: every reply counted once by its end, under vLLM's names."""

from __future__ import annotations

import json
import re
import time
from pathlib import Path

import httpx
import pytest
from prometheus_client import CollectorRegistry, Histogram, generate_latest
from prometheus_client.parser import text_string_to_metric_families

from trimtab.server.api.app import connect, create_app, create_waiting_app
from trimtab.server.api.metrics import _SECONDS, Metrics

pytestmark = pytest.mark.anyio

CHAT = "/v1/chat/completions"
BODY = {"messages": [{"role": "user", "content": "hello"}]}


async def scrape(client: httpx.AsyncClient) -> dict[tuple[str, ...], float]:
    """Samples by their name and the values of their labels, but for the model's name and buckets."""
    page = await client.get("/metrics")
    assert page.headers["content-type"].startswith("text/plain; version=0.0.4")
    return {
        (sample.name, *(v for k, v in sorted(sample.labels.items()) if k != "model_name")): sample.value
        for family in text_string_to_metric_families(page.text)
        for sample in family.samples
        if "le" not in sample.labels
    }


async def test_an_engines_numbers_stand_under_vllms_names(client, engine):
    found = await scrape(client)
    assert found["vllm:num_requests_running",] == 2
    assert found["vllm:num_requests_waiting",] == 3
    assert found["vllm:kv_cache_usage_perc",] == 0.25
    assert found["vllm:prefix_cache_hits_total",] == 7
    engine.stats = None
    assert ("vllm:num_requests_running",) not in await scrape(client)


async def test_replies_are_counted_by_how_they_ended(client, engine):
    guided = {**BODY, "guidance": {"strength": -2}}
    for body in ({**BODY, "max_tokens": 1}, {**BODY, "n": 2}, {**guided, "stream": True}):
        assert (await client.post(CHAT, json=body)).status_code == 200
    assert (await client.post(CHAT, json={**BODY, "n": 0})).status_code == 400
    engine.fail_after = 1
    assert (await client.post(CHAT, json=BODY)).status_code == 500
    found = await scrape(client)
    ends = {name[1]: value for name, value in found.items() if name[0] == "vllm:request_success_total"}
    assert ends == {"length": 1, "stop": 3, "error": 1}
    assert found["http_requests_total", CHAT, "POST", "200"] == 3
    assert found["http_requests_total", CHAT, "POST", "400"] == 1
    assert found["http_requests_total", CHAT, "POST", "500"] == 1
    prompt = len(engine.submitted[0].prompt_token_ids)
    assert found["vllm:prompt_tokens_total",] == 3 * prompt
    assert found["vllm:generation_tokens_total",] == 1 + 2 * (prompt - 1) + prompt
    assert found["vllm:time_to_first_token_seconds_count",] == 4
    assert found["vllm:e2e_request_latency_seconds_count",] == 3
    assert found["trimtab:reply_strength_count",] == 4, "the default strength is 1"
    assert found["trimtab:reply_strength_sum",] == 3 * 1 - 2
    assert found["trimtab:reply_kl_per_token_nats_sum",] == pytest.approx(4 * 0.25)
    assert found["trimtab:reply_value_count", "kind"] == 4


def test_who_leaves_has_aborted_and_is_counted(engine, serve):
    engine.hold_after = 2
    url = serve(create_app(engine, engine.tokenizer))
    with httpx.stream("POST", url + CHAT, json={**BODY, "n": 3, "stream": True}) as response:
        next(response.iter_lines())
    deadline = time.monotonic() + 5
    while 'finished_reason="abort",model_name="echo"} 3.0' not in httpx.get(url + "/metrics").text:
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.01)


def test_times_between_tokens_are_told_as_prometheus_tells_a_histogram():
    metrics, theirs = Metrics(lambda: None), CollectorRegistry()
    name = "vllm:inter_token_latency_seconds"
    histogram = Histogram(
        name, "Between tokens of a reply.", ("model_name",), buckets=_SECONDS, registry=theirs
    )

    def told(page: bytes) -> list[str]:
        lines = page.decode().splitlines()
        return [line for line in lines if name in line and "_created" not in line]

    assert told(metrics.page()) == told(generate_latest(theirs))
    for seconds, num in ((0.0, 1), (0.001, 2), (0.0011, 1), (0.25, 3), (640.0, 1), (641.0, 1)):
        metrics.inter_token.observe(seconds, num)
        for _ in range(num):
            histogram.labels(model_name=metrics.model).observe(seconds)
    assert told(metrics.page()) == told(generate_latest(theirs))


async def test_what_was_asked_for_is_no_label(client):
    for path in ("/nowhere", "/v1/models/../x?y", "/%00"):
        await client.get(path)
    handlers = {name[1] for name in await scrape(client) if name[0] == "http_requests_total"}
    assert handlers <= {"none", "/v1/models/{model:path}", "/metrics"}


async def test_metrics_are_there_before_the_engine_is(engine):
    app = create_waiting_app()
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://t") as client:
        await client.post(CHAT, json=BODY)
        assert (await scrape(client))["http_requests_total", CHAT, "POST", "503"] == 1
        connect(app, engine, engine.tokenizer)
        assert (await scrape(client))["vllm:num_requests_running",] == 2


async def test_the_dashboard_shows_what_there_is(client):
    """What its panels read is ours."""
    dashboard = Path(__file__).parents[3] / "deploy" / "grafana" / "trimtab.json"
    panels = json.loads(dashboard.read_text(encoding="utf-8"))["panels"]
    read = " ".join(target["expr"] for panel in panels for target in panel["targets"])
    shown = set(re.findall(r"\b(?:vllm|trimtab|http)[:_]\w+", read))
    page = (await client.get("/metrics")).text
    families = {family.name for family in text_string_to_metric_families(page)}
    known = {f"{name}{end}" for name in families for end in ("", "_total", "_bucket", "_sum", "_count")}
    assert shown <= known, shown - known
    assert {"vllm:num_requests_running", "vllm:kv_cache_usage_perc", "trimtab:reply_strength_sum"} <= shown
