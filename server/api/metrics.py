"""Metrics: counts requests, tokens, times and guidance for Prometheus, by vLLM's names where it has one."""

from __future__ import annotations

import contextlib
import itertools
import math
import time
from bisect import bisect_left
from collections.abc import Callable, Iterator, Sequence

from prometheus_client import CollectorRegistry, Counter, Histogram, Summary, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily
from prometheus_client.registry import Collector
from prometheus_client.utils import floatToGoString
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from trimtab.server.engine.request import (
    Aborted,
    ChoiceDone,
    Delta,
    EngineStats,
    Event,
    Failed,
    Finished,
    Request,
)

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
UNKNOWN = "unknown"
METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})
_SECONDS = (
    *(0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5),
    *(5.0, 10.0, 20.0, 40.0, 80.0, 160.0, 640.0),
)
_NATS = (0.0001, 0.0003, 0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0)
_TOKENS = tuple(float(2**i) for i in range(18))

GAUGES: tuple[tuple[str, str, Callable[[EngineStats], float]], ...] = (
    ("vllm:num_requests_running", "Replies that the engine works on.", lambda s: s.num_running),
    ("vllm:num_requests_waiting", "Replies that wait for room.", lambda s: s.num_waiting),
    ("vllm:kv_cache_usage_perc", "Share of the key/value cache in use, 0 to 1.", lambda s: s.cache_usage),
    ("trimtab:rows_guided", "Replies under way that heads or a rule steer.", lambda s: s.num_guided),
)
COUNTERS: tuple[tuple[str, str, Callable[[EngineStats], float]], ...] = (
    ("vllm:prefix_cache_queries", "Prompt tokens looked up in the prefix cache.", lambda s: s.prefix_queries),
    ("vllm:prefix_cache_hits", "Prompt tokens found there.", lambda s: s.prefix_hits),
    (
        "vllm:num_preemptions",
        "Replies that had to give way and were computed anew.",
        lambda s: s.num_preemptions,
    ),
    ("vllm:spec_decode_num_draft_tokens", "Tokens of replies that were drafted.", lambda s: s.num_drafted),
    ("vllm:spec_decode_num_accepted_tokens", "Drafts that were right.", lambda s: s.num_accepted),
)


class Metrics:
    """What a server counts. Every reply that was admitted is counted once, by how it ended, and every HTTP
    request by its answer.

    model: the served model's name, a label of all. stats: of the engine now; None where there is none.
    """

    def __init__(self, stats: Callable[[], EngineStats | None]) -> None:
        self.registry = CollectorRegistry()
        self.model = UNKNOWN
        self._withdrawn: set[str] = set()
        self.registry.register(_EngineCollector(self, stats))
        counter, histogram = self._counter, self._histogram
        self.answers = Counter(
            "http_requests",
            "HTTP requests by their answer.",
            ("handler", "method", "status"),
            registry=self.registry,
        )
        self.received = Counter(
            "http_requests_received",
            "HTTP requests that have begun: those that http_requests counts, and those under way.",
            registry=self.registry,
        )
        self.admitted = counter(
            "trimtab:replies_admitted",
            "Replies that were begun: those that request_success counts, and those under way.",
        )
        self.prompt_tokens = counter("vllm:prompt_tokens", "Tokens of prompts.")
        self.generation_tokens = counter("vllm:generation_tokens", "Tokens of replies.")
        self.computed_tokens = counter(
            "trimtab:computed_tokens", "Tokens the model was run on, in companions, probes and forks too."
        )
        self.ended = counter(
            "vllm:request_success",
            "Replies that ended, by how: stop, length, rejected, abort, error.",
            "finished_reason",
        )
        self.first_token = histogram("vllm:time_to_first_token_seconds", "Until a request's first token.")
        self.inter_token = TokenGaps(self, "vllm:inter_token_latency_seconds", "Between tokens of a reply.")
        self.registry.register(self.inter_token)
        self.end_to_end = histogram("vllm:e2e_request_latency_seconds", "Until a request's last token.")
        self.queue = histogram("vllm:request_queue_time_seconds", "Until the engine took a request up.")
        self.prefill = histogram("vllm:request_prefill_time_seconds", "From then to the first token.")
        self.decode = histogram("vllm:request_decode_time_seconds", "From the first token to the last.")
        self.prompt_length = histogram("vllm:request_prompt_tokens", "Tokens of a prompt.", _TOKENS)
        self.reply_length = histogram(
            "vllm:request_generation_tokens", "Tokens of a request's replies.", _TOKENS
        )
        # Summaries: a histogram whose numbers may be negative has no sum, and so no mean.
        self.strength = Summary(
            "trimtab:reply_strength",
            "Mean strength of a guided reply.",
            ("model_name",),
            registry=self.registry,
        )
        self.value = Summary(
            "trimtab:reply_value",
            "Last value of a reply, in standard units.",
            ("model_name", "head"),
            registry=self.registry,
        )
        self.kl = histogram(
            "trimtab:reply_kl_per_token_nats", "KL from the policy per token of a guided reply.", _NATS
        )
        self.flips = counter("trimtab:flips", "Tokens at which the tilt preferred another than the policy.")

    def withdraw(self, head: str) -> None:
        """It is gone, and its numbers with it; what is still measured of it is not told."""
        self._withdrawn.add(head)
        with contextlib.suppress(KeyError):
            self.value.remove(self.model, head)

    def offer(self, head: str) -> None:
        """It is there, again or for the first time."""
        self._withdrawn.discard(head)

    def note_value(self, head: str, value: float) -> None:
        """The last one of a reply."""
        if head not in self._withdrawn:
            self.value.labels(model_name=self.model, head=head).observe(value)

    def _counter(self, name: str, help_text: str, *labels: str) -> Counter:
        return Counter(name, help_text, ("model_name", *labels), registry=self.registry)

    def _histogram(
        self, name: str, help_text: str, buckets: Sequence[float] = _SECONDS, *labels: str
    ) -> Histogram:
        return Histogram(name, help_text, ("model_name", *labels), buckets=buckets, registry=self.registry)

    def page(self) -> bytes:
        """As Prometheus reads it."""
        return generate_latest(self.registry)


class _EngineCollector(Collector):
    """Reads the engine's numbers when they are asked for."""

    def __init__(self, metrics: Metrics, stats: Callable[[], EngineStats | None]) -> None:
        self._metrics, self._stats = metrics, stats

    def collect(self) -> Iterator[GaugeMetricFamily | CounterMetricFamily]:
        stats = self._stats()
        for kind, table in ((GaugeMetricFamily, GAUGES), (CounterMetricFamily, COUNTERS)):
            for name, help_text, read in table:
                family = kind(name, help_text, labels=("model_name",))
                if stats is not None:
                    family.add_metric((self._metrics.model,), read(stats))
                yield family


class TokenGaps(Collector):
    """A histogram of seconds that counts many times what prometheus_client's does in the time of one: it
    counts every token. It belongs to the event loop's thread."""

    def __init__(self, metrics: Metrics, name: str, help_text: str) -> None:
        self._metrics, self._name, self._help = metrics, name, help_text
        self._counts, self._sum = [0] * (len(_SECONDS) + 1), 0.0

    def observe(self, seconds: float, num: int) -> None:
        """So many times."""
        self._counts[bisect_left(_SECONDS, seconds)] += num
        self._sum += seconds * num

    def collect(self) -> Iterator[HistogramMetricFamily]:
        family = HistogramMetricFamily(self._name, self._help, labels=("model_name",))
        if self._counts != [0] * len(self._counts):
            ends = map(floatToGoString, (*_SECONDS, math.inf))
            buckets = zip(ends, itertools.accumulate(self._counts), strict=True)
            family.add_metric((self._metrics.model,), [*buckets], self._sum)
        yield family


class RequestMeter:
    """What one HTTP request's replies came to: told of every event, and of the end."""

    def __init__(self, metrics: Metrics, requests: Sequence[Request]) -> None:
        self._metrics, self._label = metrics, {"model_name": metrics.model}
        self._began = time.monotonic()
        self._running = {request.request_id: request.sampling.n for request in requests}
        self._guided = {request.request_id: request.guidance.is_guided for request in requests}
        self._given = {request.request_id for request in requests if request.given}
        self._last: dict[int, float] = {}

    def see(self, index: int, event: Event) -> None:
        """index: of the choice over all prompts."""
        match event:
            case Delta(tokens=tokens) if tokens and event.request_id not in self._given:
                self._token(index, len(tokens))
            case ChoiceDone():
                self._end(event.request_id, event.finish_reason, 1)
                self._choice(event)
            case Finished():
                self._finish(event)
            case Failed() | Aborted():
                reason = "error" if isinstance(event, Failed) else "abort"
                self._end(event.request_id, reason, self._running[event.request_id])

    def leave(self) -> None:
        """What has not ended is aborted."""
        for request_id, num in self._running.items():
            self._end(request_id, "abort", num)

    def _token(self, index: int, num: int) -> None:
        now = time.monotonic()
        if not self._last:
            self._metrics.first_token.labels(**self._label).observe(now - self._began)
        if index in self._last:
            self._metrics.inter_token.observe((now - self._last[index]) / num, num)
        self._last[index] = now

    def _end(self, request_id: str, reason: str, num: int) -> None:
        if num:
            self._metrics.ended.labels(**self._label, finished_reason=reason).inc(num)
            self._running[request_id] -= num

    def _choice(self, event: ChoiceDone) -> None:
        metrics, summary = self._metrics, event.summary
        for head, value in summary.value:
            metrics.note_value(head, value)
        if self._guided[event.request_id]:
            metrics.strength.labels(**self._label).observe(summary.mean_strength)
            metrics.kl.labels(**self._label).observe(summary.kl / max(event.num_tokens, 1))
            metrics.flips.labels(**self._label).inc(summary.flips)

    def _finish(self, event: Finished) -> None:
        metrics, label = self._metrics, self._label
        metrics.prompt_tokens.labels(**label).inc(event.num_prompt_tokens)
        metrics.generation_tokens.labels(**label).inc(event.num_completion_tokens)
        metrics.computed_tokens.labels(**label).inc(event.num_computed_tokens)
        metrics.prompt_length.labels(**label).observe(event.num_prompt_tokens)
        metrics.reply_length.labels(**label).observe(event.num_completion_tokens)
        metrics.end_to_end.labels(**label).observe(time.monotonic() - self._began)
        if event.times is not None:
            metrics.queue.labels(**label).observe(event.times.queue)
            metrics.prefill.labels(**label).observe(event.times.prefill)
            metrics.decode.labels(**label).observe(event.times.decode)


class CountAnswers:
    """ASGI middleware that counts every HTTP request by its route and status; 499 for clients that left."""

    def __init__(self, app: ASGIApp, metrics: Metrics) -> None:
        self._app, self._metrics = app, metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        status = 499
        self._metrics.received.inc()

        async def watch(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            await self._app(scope, receive, watch)
        except BaseException:
            status = 500 if status == 499 else status
            raise
        finally:
            # The route's own path, which the application notes: what was asked for may be anything.
            handler = getattr(scope.get("route"), "path", "none")
            method = scope["method"] if scope["method"] in METHODS else "other"
            self._metrics.answers.labels(handler, method, str(status)).inc()
