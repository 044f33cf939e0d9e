"""Application: assembles the HTTP routes over an engine."""

from __future__ import annotations

from fastapi import FastAPI

from trimtab.server.api import routes
from trimtab.server.api.config import ApiConfig, resolve_config
from trimtab.server.api.errors import install_error_handlers
from trimtab.server.api.generation import EngineClient
from trimtab.server.api.readings import routes as readings
from trimtab.server.api.responses import routes as responses
from trimtab.server.api.service import HeadRows, Service
from trimtab.server.api.tokens import Tokenizer, TokenText
from trimtab.server.api.tools.formats import find_format


def create_app(engine: EngineClient, tokenizer: Tokenizer, config: ApiConfig | None = None) -> FastAPI:
    """The application over a running engine. Raises ConfigError like `connect`."""
    app = create_waiting_app()
    connect(app, engine, tokenizer, config)
    return app


def create_waiting_app() -> FastAPI:
    """The application before there is an engine: every route answers 503 until `connect`."""
    app = FastAPI(title="Trimtab", docs_url="/docs", redoc_url=None)
    app.state.service = None
    install_error_handlers(app)
    routers = (routes.router, readings.router, responses.router)
    for router in routers:
        app.include_router(router)
    app.state.routes = [r for router in routers for r in router.routes]  # for whoever asks for another
    return app


def connect(
    app: FastAPI, engine: EngineClient, tokenizer: Tokenizer, config: ApiConfig | None = None
) -> None:
    """Gives the application its engine. Raises ConfigError for defaults that its heads cannot honour."""
    info = engine.info
    resolved = resolve_config(config or ApiConfig(), info)
    if resolved.chat_template is not None:
        tokenizer.chat_template = resolved.chat_template
    head_rows = HeadRows(info.heads, can_chat=bool(tokenizer.chat_template))
    call_format = find_format(resolved.tool_call_parser, tokenizer)
    text = TokenText(tokenizer)
    app.state.service = Service(engine, info, tokenizer, text, resolved, head_rows, call_format)
