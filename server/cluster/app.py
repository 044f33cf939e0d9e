"""Application for Ray Serve: an ingress with the API of the single server, and engines behind it.

`serve run trimtab.server.cluster.app:build model=…` starts it; `deploy/` has configurations.
"""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from fastapi import FastAPI
from ray import serve
from ray.serve.config import RequestRouterConfig
from ray.serve.exceptions import BackPressureError
from ray.serve.handle import DeploymentHandle
from ray.serve.metrics import Counter, Gauge
from starlette.datastructures import MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from trimtab.server.api.app import connect, create_waiting_app
from trimtab.server.api.config import ApiConfig, resolve_config
from trimtab.server.api.metrics import COUNTERS, GAUGES
from trimtab.server.api.models.profiles import check_profiles, read_profiles
from trimtab.server.api.telemetry.log_lines import set_up_log
from trimtab.server.api.telemetry.spans import make_tracing
from trimtab.server.cluster.client import RemoteEngine
from trimtab.server.cluster.config import ENGINE, INGRESS, ClusterConfig
from trimtab.server.cluster.replica import EngineReplica, Introduction
from trimtab.server.cluster.router import PrefixRouter
from trimtab.server.commands.model import resolve_api, resolve_engine
from trimtab.server.commands.serve.run import find_defaults, start_engine
from trimtab.server.commands.settings import settings_of

if TYPE_CHECKING:
    from trimtab.server.engine.async_engine import AsyncEngine

logger = logging.getLogger(__name__)
RETRY_SECONDS = 1.0
HEALTH_SECONDS = 5.0  # between looks at a replica's health, and its numbers
SPARE_CONNECTIONS = 256  # that wait for one of max_connections


def build(args: Mapping[str, Any]) -> serve.Application:
    """The application. args: options by their names, or `config`, a file of those of `trimtab serve`.

    Raises UsageError, UserError, ConfigError or DataError with one line.
    """
    config = settings_of(ClusterConfig, args)
    api = replace(
        resolve_api(config),
        tool_call_parser=config.tool_call_parser,
        access=config.access,
        telemetry=config.telemetry,
        profiles=read_profiles(config.profiles),
    )
    rows = config.engine.max_num_seqs
    engines = serve.deployment(
        EngineDeployment,
        name=ENGINE,
        max_ongoing_requests=2 * rows,
        max_queued_requests=config.access.max_queued_requests,
        autoscaling_config={
            "min_replicas": config.min_replicas,
            "max_replicas": config.max_replicas,
            "target_ongoing_requests": rows,
        },
        request_router_config=RequestRouterConfig(request_router_class=PrefixRouter),
        health_check_period_s=HEALTH_SECONDS,
        graceful_shutdown_timeout_s=config.drain,
    )
    ingress = serve.deployment(
        serve.ingress(lambda: application(api))(Ingress),
        name=INGRESS,
        max_ongoing_requests=config.access.max_connections,
        max_queued_requests=SPARE_CONNECTIONS,
        graceful_shutdown_timeout_s=config.drain,
    )
    return ingress.bind(engines.bind(config, api), api)


class EngineDeployment(EngineReplica):
    """An engine in a process of its own, whose numbers are Ray's metrics."""

    def __init__(self, config: ClusterConfig, api: ApiConfig) -> None:
        super().__init__(lambda: load(config, api))
        self._gauges = [(Gauge(_ray_name(name), text), read) for name, text, read in GAUGES]
        self._counters = [(Counter(_ray_name(name), text), read) for name, text, read in COUNTERS]
        self._counted = [0.0] * len(COUNTERS)

    def check_health(self) -> None:
        """Raises EngineUnavailableError for a dead engine; else tells its numbers."""
        super().check_health()
        if (stats := self.stats()) is None:
            return
        for gauge, read in self._gauges:
            gauge.set(read(stats))
        for i, (counter, read) in enumerate(self._counters):
            if (count := read(stats)) > self._counted[i]:
                counter.inc(count - self._counted[i])
                self._counted[i] = count


def _ray_name(name: str) -> str:
    """With `ray_` before it, as Ray has it, vLLM's numbers have the names that they have in Ray Serve LLM."""
    return name.replace(":", "_")


def load(config: ClusterConfig, api: ApiConfig) -> tuple[AsyncEngine, Introduction]:
    """Raises what loading raises, and ConfigError for defaults or profiles that the heads cannot honour."""
    set_up_log(api.telemetry)
    limits = None, api.access.max_queued_tokens
    engine = start_engine(resolve_engine(config.engine), api.chat_template, limits)
    engine.wait_until_loaded()
    check_profiles(resolve_config(api, engine.info), engine.info)
    defaults = find_defaults(config.engine.model, api.generation_config)
    return engine, Introduction(engine.info, engine.engine.policy.tokenizer, defaults)


def application(api: ApiConfig) -> FastAPI:
    """What answers 503 until it is connected."""
    set_up_log(api.telemetry)
    app = create_waiting_app(api.access, make_tracing(api.telemetry.otel_endpoint, os.environ))
    app.add_middleware(WithoutRequestId)
    return app


class WithoutRequestId:
    """ASGI middleware that leaves X-Request-Id to Ray's proxy, which adds it to every answer."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def send_without_id(message: Message) -> None:
            if message["type"] == "http.response.start":
                del MutableHeaders(scope=message)["X-Request-Id"]
            await send(message)

        await self._app(scope, receive, send_without_id)


class Ingress:
    """The HTTP application, which answers 503 until an engine has introduced itself."""

    app: FastAPI  # by serve.ingress

    def __init__(self, engines: DeploymentHandle, api: ApiConfig) -> None:
        self._connecting = asyncio.create_task(self._connect(engines, api))

    def check_health(self) -> None:
        """Raises what has kept it from connecting."""
        if self._connecting.done():
            self._connecting.result()

    async def _connect(self, engines: DeploymentHandle, api: ApiConfig) -> None:
        introduction = await self._introduction(engines)
        send = engines.options(stream=True).stream.remote
        engine = RemoteEngine(introduction.info, send, BackPressureError)
        config = replace(api, sampling_defaults=introduction.sampling_defaults)
        connect(self.app, engine, introduction.tokenizer, config)

    async def _introduction(self, engines: DeploymentHandle) -> Introduction:
        while True:
            try:
                introduction: Introduction = await engines.introduce.remote()
                return introduction
            except Exception as error:  # it may have died, or not load: Ray says so, and starts another
                logger.warning("no engine has introduced itself: %s", error)
                await asyncio.sleep(RETRY_SECONDS)
