"""The HTTP server over an engine that loads while the port already answers."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable

import uvicorn

from trimtab.server.api.app import connect, create_waiting_app
from trimtab.server.api.config import ApiConfig
from trimtab.server.cli_errors import UserError
from trimtab.server.engine.async_engine import AsyncEngine
from trimtab.server.engine.config import EngineConfig
from trimtab.server.engine.engine import Engine
from trimtab.server.engine.info import EngineInfo
from trimtab.server.engine.policy import ModelError


async def serve(
    listener: socket.socket,
    engine_config: EngineConfig,
    api_config: ApiConfig,
    on_ready: Callable[[EngineInfo, ApiConfig], None],
) -> None:
    """Serves until the process is told to stop. Answers 503 while the engine loads, then calls on_ready.

    Raises UserError, HeadError or ConfigError when the engine cannot be had as asked.
    """
    app = create_waiting_app()
    settings = uvicorn.Config(
        app, log_config=None, access_log=False, lifespan="off", timeout_graceful_shutdown=3
    )
    server = uvicorn.Server(settings)
    engine = AsyncEngine(lambda: Engine.from_config(engine_config))
    engine.start()
    serving = asyncio.create_task(server.serve([listener]))
    try:
        while engine.status == "starting" and not serving.done():
            await asyncio.sleep(0.02)
        if engine.status != "starting":
            engine.wait_until_loaded()
            connect(app, engine, engine.engine.policy.tokenizer, api_config)
            on_ready(engine.info, app.state.service.config)
            await serving
    except ModelError as error:
        raise UserError(str(error)) from error
    finally:
        server.should_exit = True
        await serving
        if engine.status == "ready":
            engine.stop()
