"""Traces of requests, by OpenTelemetry's own exporter into memory."""

from __future__ import annotations

import sys
from collections.abc import AsyncIterator
from typing import Any

import pytest

pytest.importorskip("opentelemetry.sdk", reason="the extra `otel` is not installed")

import httpx
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanKind, StatusCode

from trimtab.guidance.errors import UserError
from trimtab.server.api.app import create_app
from trimtab.server.api.telemetry.spans import Tracing, make_tracing
from trimtab.server.engine.request import Finished, RequestTimes

pytestmark = pytest.mark.anyio
TRACE, PARENT = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
SECRET = "xyzzyq"


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture
def exported() -> InMemorySpanExporter:
    return InMemorySpanExporter()


@pytest.fixture
async def traced(engine, exported) -> AsyncIterator[httpx.AsyncClient]:
    events = engine._events

    async def timed(request):
        async for event in events(request):
            if isinstance(event, Finished):
                given = (event.request_id, event.num_prompt_tokens, 0, event.num_completion_tokens)
                event = Finished(*given, times=RequestTimes(0.5, 0.25, 2.0))  # noqa: PLW2901
            yield event

    engine._events = timed
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exported))
    app = create_app(engine, engine.tokenizer, None, Tracing(provider))
    transport = httpx.ASGITransport(app, raise_app_exceptions=False)
    async with httpx.AsyncClient(transport=transport, base_url="http://trimtab") as client:
        yield client


@pytest.mark.parametrize("stream", [False, True])
async def test_a_request_is_a_span_with_its_phases_as_children(traced, exported, stream: bool):
    body: dict[str, Any] = {
        "messages": [{"role": "user", "content": SECRET}],
        "max_tokens": 3,
        "n": 2,
        "stream": stream,
        "temperature": 0.5,
        "guidance": {"strength": 2, "heads": {"kind": 1}},
    }
    headers = {"traceparent": f"00-{TRACE}-{PARENT}-01", "X-Request-Id": "mine"}
    assert (await traced.post("/v1/chat/completions", json=body, headers=headers)).status_code == 200
    *children, span = exported.get_finished_spans()
    assert (span.name, span.kind) == ("POST /v1/chat/completions", SpanKind.SERVER)
    assert (f"{span.context.trace_id:032x}", f"{span.parent.span_id:016x}") == (TRACE, PARENT)
    told = dict(span.attributes)
    assert told["gen_ai.operation.name"] == "chat"
    assert told["gen_ai.request.model"] == told["gen_ai.response.model"] == "echo"
    assert (told["gen_ai.request.temperature"], told["gen_ai.request.choice.count"]) == (0.5, 2)
    assert told["gen_ai.usage.output_tokens"] == 6 and told["gen_ai.usage.input_tokens"] > 3
    assert told["gen_ai.response.finish_reasons"] == ("length", "length")
    assert told["trimtab.guidance.strength"] == 2 and told["trimtab.guidance.heads"] == ("kind",)
    assert told["trimtab.guidance.kl"] == (0.75, 0.75)
    assert (told["http.response.status_code"], told["trimtab.request.id"]) == (200, "mine")
    assert [child.name for child in children] == ["queue", "prefill", "decode"]
    lengths = [(child.end_time - child.start_time) / 1e9 for child in children]
    assert lengths == pytest.approx([0.5, 0.25, 2.0])
    assert all(child.parent.span_id == span.context.span_id for child in children)
    assert children[0].end_time == children[1].start_time
    assert SECRET not in "".join(each.to_json() for each in exported.get_finished_spans())


async def test_what_fails_is_told_by_its_kind_alone(engine, traced, exported):
    engine.bug = ValueError(SECRET)
    await traced.post("/v1/completions", json={"prompt": SECRET})
    await traced.post("/v1/completions", json={"prompt": SECRET, "temperature": -1})
    await traced.get(f"/v1/{SECRET[:0]}nowhere?q={SECRET}", headers={"traceparent": SECRET})
    failed, refused, lost = exported.get_finished_spans()
    assert (failed.status.status_code, failed.attributes["error.type"]) == (StatusCode.ERROR, "ValueError")
    assert (refused.status.status_code, refused.attributes["error.type"]) == (StatusCode.UNSET, "400")
    assert lost.attributes["http.response.status_code"] == 404 and lost.parent is None
    assert SECRET not in "".join(each.to_json() for each in exported.get_finished_spans())


async def test_probes_have_no_span(traced, exported):
    for path in ("/health", "/live", "/ready", "/ping", "/metrics"):
        await traced.get(path)
    assert exported.get_finished_spans() == ()


async def test_where_spans_go(monkeypatch):
    assert make_tracing(None, {}) is None
    assert make_tracing("http://127.0.0.1:9", {"OTEL_SDK_DISABLED": "true"}) is None
    for tracing in (
        make_tracing("http://127.0.0.1:9/", {}),
        make_tracing(None, {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:9"}),
    ):
        assert tracing is not None
        (processor,) = tracing._provider._active_span_processor._span_processors
        assert processor.span_exporter is not None
        tracing.close()


async def test_without_the_extra_one_line_says_how_to_install_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "opentelemetry.exporter.otlp.proto.http.trace_exporter", None)
    for endpoint, environment, asked in (
        ("http://a", {}, "--otel-endpoint"),
        (None, {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://a"}, "OTEL_EXPORTER_OTLP_ENDPOINT"),
    ):
        with pytest.raises(UserError, match=asked) as told:
            make_tracing(endpoint, environment)
        assert "pip install 'trimtab[otel]'" in str(told.value) and str(told.value).isprintable()
