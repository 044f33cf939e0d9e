"""Spans: an OpenTelemetry trace of each request, by the conventions for generative AI where they have a word.

Needs the extra `otel`, whose packages are imported where a trace is asked for. No span has a prompt or a
reply.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from starlette.datastructures import Headers
from starlette.types import Scope

from trimtab.guidance.errors import UserError, printable
from trimtab.server.api.access.gate import ANYONE
from trimtab.server.engine.request import ChoiceDone, Event, Failed, Finished, Request

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.trace import Span

ENDPOINTS = ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT")
INSTALL = "pip install 'trimtab[otel]'"
CLOSE_SECONDS = 3.0  # that spans are sent for at the end
MAX_TEXT = 200  # characters of what a client chose
_OPERATIONS = {"/v1/completions": "text_completion", "/v1/score": "score"}


class Tracing:
    """Spans by a provider of OpenTelemetry's SDK."""

    def __init__(self, provider: TracerProvider) -> None:
        from opentelemetry.trace.propagation.tracecontext import (  # noqa: PLC0415 (an extra)
            TraceContextTextMapPropagator,
        )

        self._provider = provider
        self._tracer = provider.get_tracer("trimtab")
        self._propagator = TraceContextTextMapPropagator()

    def begin(self, scope: Scope, request_id: str) -> Span:
        """Of an HTTP request: the child of its `traceparent`, where it has one."""
        from opentelemetry.trace import SpanKind  # noqa: PLC0415

        headers = Headers(scope=scope)
        carrier = {name: headers[name] for name in ("traceparent", "tracestate") if name in headers}
        return self._tracer.start_span(
            _short(scope["method"]),
            self._propagator.extract(carrier),
            kind=SpanKind.SERVER,
            attributes={
                "http.request.method": _short(scope["method"]),
                "url.path": _short(scope["path"]),
                "trimtab.request.id": request_id,
            },
        )

    def end(self, span: Span, scope: Scope, status: int, error: BaseException | None) -> None:
        from opentelemetry.trace import Status, StatusCode  # noqa: PLC0415

        route = getattr(scope.get("route"), "path", None)
        if route is not None:
            span.set_attribute("http.route", route)
            span.update_name(f"{_short(scope['method'])} {route}")
        span.set_attribute("http.response.status_code", status)
        if (key := scope["state"].get("key_name", ANYONE)) != ANYONE:
            span.set_attribute("enduser.id", key)
        if error is not None or status >= 400:  # by its kind: its words may quote the request
            span.set_attribute("error.type", str(status) if error is None else type(error).__name__)
        if error is not None or status >= 500:
            span.set_status(Status(StatusCode.ERROR))
        span.end()

    def watch(self, span: Span, path: str, requests: Sequence[Request], model: str) -> RequestSpans:
        """A watcher of the engine's requests of the span's HTTP request."""
        return RequestSpans(self, span, path, requests, model)

    def child(self, span: Span, name: str, start: int, end: int, attributes: Mapping[str, Any]) -> None:
        """One that is over; times in nanoseconds."""
        from opentelemetry.trace import set_span_in_context  # noqa: PLC0415

        within = set_span_in_context(span)
        self._tracer.start_span(name, within, start_time=start, attributes=attributes).end(end)

    def close(self) -> None:
        """Sends what is left, for a while."""
        closing = threading.Thread(target=self._provider.shutdown, daemon=True)
        closing.start()
        closing.join(CLOSE_SECONDS)


class RequestSpans:
    """Of one HTTP request: what was asked for and how it went on its span, and for each engine's request a
    child for queue, prefill and decode. A watcher."""

    def __init__(
        self, tracing: Tracing, span: Span, path: str, requests: Sequence[Request], model: str
    ) -> None:
        self._tracing, self._span, self._began = tracing, span, time.time_ns()
        self._prompt_tokens = self._completion_tokens = 0
        self._reasons: list[str] = []
        self._kl: list[float] = []
        self._strength: list[float] = []
        for name, value in _asked(path, requests[0], model).items():
            span.set_attribute(name, value)

    def see(self, index: int, event: Event) -> None:
        match event:
            case ChoiceDone():
                self._reasons.append(event.finish_reason)
                self._kl.append(event.summary.kl)
                self._strength.append(event.summary.mean_strength)
            case Finished():
                self._finish(event)
            case Failed():
                self._span.add_event("engine.failed", {"reason": event.reason})

    def leave(self) -> None:
        pass

    def _finish(self, event: Finished) -> None:
        self._prompt_tokens += event.num_prompt_tokens
        self._completion_tokens += event.num_completion_tokens
        told: dict[str, Any] = {
            "gen_ai.usage.input_tokens": self._prompt_tokens,
            "gen_ai.usage.output_tokens": self._completion_tokens,
            "gen_ai.response.finish_reasons": self._reasons,
            "gen_ai.response.id": event.request_id,
            "trimtab.guidance.kl": self._kl,
            "trimtab.guidance.mean_strength": self._strength,
        }
        for name, value in told.items():
            self._span.set_attribute(name, value)
        if event.times is None:
            return
        start = self._began
        for name in ("queue", "prefill", "decode"):
            end = start + int(getattr(event.times, name) * 1e9)
            self._tracing.child(self._span, name, start, end, {"gen_ai.response.id": event.request_id})
            start = end


def _asked(path: str, request: Request, model: str) -> dict[str, Any]:
    sampling, guidance = request.sampling, request.guidance
    return {
        "gen_ai.operation.name": _OPERATIONS.get(path, "chat"),
        "gen_ai.provider.name": "trimtab",
        "gen_ai.request.model": model,
        "gen_ai.response.model": model,
        "gen_ai.request.max_tokens": sampling.max_tokens,
        "gen_ai.request.temperature": sampling.temperature,
        "gen_ai.request.top_p": sampling.top_p,
        "gen_ai.request.choice.count": sampling.n,
        "trimtab.guidance.strength": guidance.strength,
        "trimtab.guidance.heads": [name for name, _ in guidance.heads],
    }


def _short(text: str) -> str:
    return printable(text[:MAX_TEXT])


def make_tracing(endpoint: str | None, environment: Mapping[str, str]) -> Tracing | None:
    """Sends to the endpoint, or to where the environment says; None where neither says so.

    Raises UserError where the extra is not installed.
    """
    named = [name for name in ENDPOINTS if environment.get(name)]
    is_off = environment.get("OTEL_SDK_DISABLED", "").lower() == "true"
    if is_off or (endpoint is None and not named):
        return None
    try:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import (  # noqa: PLC0415
            OTLPSpanExporter,
        )
        from opentelemetry.sdk.resources import Resource  # noqa: PLC0415
        from opentelemetry.sdk.trace import TracerProvider  # noqa: PLC0415
        from opentelemetry.sdk.trace.export import BatchSpanProcessor  # noqa: PLC0415
    except ImportError as error:
        asked = named[0] if endpoint is None else "--otel-endpoint"
        raise UserError(f"{asked} asks for traces, which need OpenTelemetry: {INSTALL}") from error
    is_named = "service.name=" in environment.get("OTEL_RESOURCE_ATTRIBUTES", "")
    service = {} if is_named or environment.get("OTEL_SERVICE_NAME") else {"service.name": "trimtab"}
    provider = TracerProvider(resource=Resource.create(service), shutdown_on_exit=False)
    exporter = OTLPSpanExporter(None if endpoint is None else _traces_of(endpoint))
    provider.add_span_processor(BatchSpanProcessor(exporter))
    return Tracing(provider)


def _traces_of(endpoint: str) -> str:
    whole = endpoint.rstrip("/")
    return whole if whole.endswith("/v1/traces") else f"{whole}/v1/traces"
