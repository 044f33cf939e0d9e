"""Application: assembles the HTTP routes over an engine."""

from __future__ import annotations

from fastapi import FastAPI
from fastapi.middleware.cors import CORSMiddleware

from trimtab.server.api import routes
from trimtab.server.api.access.config import AccessConfig
from trimtab.server.api.access.gate import Gate
from trimtab.server.api.access.keys import ADMIN_VARIABLE, load_keys
from trimtab.server.api.access.rates import Rates
from trimtab.server.api.config import ApiConfig, resolve_config
from trimtab.server.api.errors import install_error_handlers
from trimtab.server.api.generation import EndWhatWasBegun, EngineClient
from trimtab.server.api.metrics import CountAnswers, Metrics
from trimtab.server.api.models import heads
from trimtab.server.api.models import routes as models
from trimtab.server.api.models.profiles import check_profiles, model_ids
from trimtab.server.api.readings import routes as readings
from trimtab.server.api.readings.reasoning import ReasoningTags
from trimtab.server.api.responses import routes as responses
from trimtab.server.api.service import HeadRows, Service, stats_of
from trimtab.server.api.strict_json import BodyReader
from trimtab.server.api.telemetry.request_log import RequestLog
from trimtab.server.api.telemetry.spans import Tracing
from trimtab.server.api.tokens import Encoding, Tokenizer, TokenText
from trimtab.server.api.tools.formats import find_format


def create_app(
    engine: EngineClient,
    tokenizer: Tokenizer,
    config: ApiConfig | None = None,
    tracing: Tracing | None = None,
) -> FastAPI:
    """The application over a running engine. Raises ConfigError like `connect`."""
    app = create_waiting_app(None if config is None else config.access, tracing)
    connect(app, engine, tokenizer, config)
    return app


def create_waiting_app(access: AccessConfig | None = None, tracing: Tracing | None = None) -> FastAPI:
    """The application before there is an engine: every route answers 503 until `connect`. Raises UserError
    for API keys that cannot be read."""
    access = access or AccessConfig()
    app = FastAPI(title="Trimtab", docs_url="/docs", redoc_url=None)
    app.state.bodies = BodyReader()
    app.state.service, app.state.tracing = None, tracing
    app.state.metrics = metrics = Metrics(lambda: stats_of(app))
    install_error_handlers(app)
    routers = (routes.router, models.router, heads.router, readings.router, responses.router)
    for router in routers:
        app.include_router(router)
    app.state.routes = [r for router in routers for r in router.routes]  # for whoever asks for another
    app.add_middleware(EndWhatWasBegun)
    admin_keys = load_keys(access.admin_keys, variable=ADMIN_VARIABLE)
    app.state.has_admins = bool(admin_keys) and access.heads_dir is not None
    app.add_middleware(
        Gate,
        admin_keys=admin_keys,
        keys=load_keys(access.api_keys),
        rates=Rates(access.max_requests_per_key, access.requests_per_minute),
        hosts=access.allowed_hosts,
        read_timeout=access.read_timeout,
        request_timeout=access.request_timeout,
    )
    if access.allowed_origins:
        app.add_middleware(
            CORSMiddleware,
            allow_origins=list(access.allowed_origins),
            allow_methods=["GET", "POST"],
            allow_headers=["*"],
        )
    app.add_middleware(CountAnswers, metrics=metrics)
    app.add_middleware(RequestLog, tracing=tracing)  # the last is the first to see a request
    return app


def connect(
    app: FastAPI, engine: EngineClient, tokenizer: Tokenizer, config: ApiConfig | None = None
) -> None:
    """Gives the application its engine. Raises ConfigError for defaults that its heads cannot honour."""
    info = engine.info
    resolved = resolve_config(config or ApiConfig(), info)
    check_profiles(resolved, info)
    if resolved.chat_template is not None:
        tokenizer.chat_template = resolved.chat_template
    app.state.metrics.model = info.model_name
    head_rows = HeadRows(info.heads, can_chat=bool(tokenizer.chat_template))
    app.state.service = Service(
        engine,
        info,
        tokenizer,
        TokenText(tokenizer),
        resolved,
        head_rows,
        app.state.metrics,
        find_format(resolved.tool_call_parser, tokenizer),
        ReasoningTags.of(tokenizer),
        model_ids(resolved, info),
        Encoding(tokenizer, info.max_model_len),
        app.state.tracing,
    )
