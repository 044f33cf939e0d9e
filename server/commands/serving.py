"""The HTTP server over an engine that loads while the port already answers."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable
from typing import TYPE_CHECKING

import uvicorn

from trimtab.server.api.app import connect, create_waiting_app
from trimtab.server.api.config import ApiConfig
from trimtab.server.api.service import Service
from trimtab.server.commands.errors import UserError
from trimtab.server.engine.config import EngineConfig

if TYPE_CHECKING:
    from trimtab.server.engine.async_engine import AsyncEngine


class ModelServer:
    """Answers 503 on a listening socket while the engine loads, and serves from then on."""

    def __init__(self, listener: socket.socket, engine_config: EngineConfig, api_config: ApiConfig) -> None:
        self._listener = listener
        self._engine_config, self._api_config = engine_config, api_config
        self._app = create_waiting_app()
        settings = uvicorn.Config(
            self._app, log_config=None, access_log=False, lifespan="off", timeout_graceful_shutdown=3
        )
        self._server = uvicorn.Server(settings)

    async def run(self, on_ready: Callable[[Service], None]) -> None:
        """Serves until the process is told to stop, or `stop` is called; calls on_ready once loaded.

        Raises UserError, HeadError or ConfigError when the engine cannot be had as asked.
        """
        serving = asyncio.create_task(self._server.serve([self._listener]))
        engine = await asyncio.to_thread(_start_engine, self._engine_config)
        try:
            while engine.status == "starting" and not serving.done():
                await asyncio.sleep(0.02)
            if not serving.done():
                self._connect(engine, on_ready)
            await serving
        finally:
            self.stop()
            await serving
            if engine.status != "starting":
                engine.stop()

    def stop(self) -> None:
        """Makes `run` return soon; may be called from any thread."""
        self._server.should_exit = True

    def _connect(self, engine: AsyncEngine, on_ready: Callable[[Service], None]) -> None:
        from trimtab.server.engine.policy import ModelError  # noqa: PLC0415 (loaded with the engine)

        try:
            engine.wait_until_loaded()
        except ModelError as error:
            raise UserError(str(error)) from error
        connect(self._app, engine, engine.engine.policy.tokenizer, self._api_config)
        on_ready(self._app.state.service)


def _start_engine(config: EngineConfig) -> AsyncEngine:
    """Importing torch and transformers takes seconds, in which the port should answer."""
    from trimtab.server.engine.async_engine import AsyncEngine  # noqa: PLC0415
    from trimtab.server.engine.engine import Engine  # noqa: PLC0415

    engine = AsyncEngine(lambda: Engine.from_config(config))
    engine.start()
    return engine
