"""The HTTP server over an engine that loads while the port already answers."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable

import uvicorn

from trimtab.server.api.app import connect, create_waiting_app
from trimtab.server.api.config import ApiConfig
from trimtab.server.api.service import Service
from trimtab.server.cli_errors import UserError
from trimtab.server.engine.async_engine import AsyncEngine
from trimtab.server.engine.config import EngineConfig
from trimtab.server.engine.engine import Engine
from trimtab.server.engine.info import EngineInfo
from trimtab.server.engine.policy import ModelError


class ModelServer:
    """Answers 503 on a listening socket while the engine loads, and serves from then on."""

    def __init__(self, listener: socket.socket, engine_config: EngineConfig, api_config: ApiConfig) -> None:
        self._listener = listener
        self._api_config = api_config
        self._app = create_waiting_app()
        settings = uvicorn.Config(
            self._app, log_config=None, access_log=False, lifespan="off", timeout_graceful_shutdown=3
        )
        self._server = uvicorn.Server(settings)
        self._engine = AsyncEngine(lambda: Engine.from_config(engine_config))

    async def run(self, on_ready: Callable[[EngineInfo, ApiConfig], None]) -> None:
        """Serves until the process is told to stop, or `stop` is called; calls on_ready once loaded.

        Raises UserError, HeadError or ConfigError when the engine cannot be had as asked.
        """
        self._engine.start()
        serving = asyncio.create_task(self._server.serve([self._listener]))
        try:
            while self._engine.status == "starting" and not serving.done():
                await asyncio.sleep(0.02)
            if not serving.done():
                self._connect(on_ready)
            await serving
        finally:
            self.stop()
            await serving
            if self._engine.status != "starting":
                self._engine.stop()

    def stop(self) -> None:
        self._server.should_exit = True

    def _connect(self, on_ready: Callable[[EngineInfo, ApiConfig], None]) -> None:
        try:
            self._engine.wait_until_loaded()
        except ModelError as error:
            raise UserError(str(error)) from error
        connect(self._app, self._engine, self._engine.engine.policy.tokenizer, self._api_config)
        service: Service = self._app.state.service
        on_ready(service.info, service.config)
