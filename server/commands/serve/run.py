"""HTTP server: answers while its engine loads, and lets replies end when it is told to stop."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import logging
import socket
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import uvicorn

from trimtab.guidance.errors import EngineDiedError, UserError
from trimtab.guidance.model_names import find_model
from trimtab.server.api.access.slow import timed_protocol
from trimtab.server.api.app import connect, create_waiting_app
from trimtab.server.api.config import ApiConfig
from trimtab.server.api.generation_defaults import (
    FILE,
    GenerationConfigError,
    SamplingDefaults,
    read_defaults,
)
from trimtab.server.api.service import Service
from trimtab.server.api.telemetry.spans import Tracing
from trimtab.server.engine.config import EngineConfig

if TYPE_CHECKING:
    from trimtab.server.engine.async_engine import AsyncEngine

logger = logging.getLogger(__name__)
TICK = 0.02  # seconds between looks at what other threads may have changed
STEP_SECONDS = 1.0  # that the engine's last step is waited for
SEND_SECONDS = 3  # that clients have to take what was written last; whoever takes none is cut off
DEATH_SECONDS = 1.0  # that a server with a dead engine goes on saying so


class ModelServer:
    """Answers 503 on a listening socket while the engine loads, serves, and answers 503 again while it stops.

    grace: seconds that replies under way may go on for once the server was told to stop. tls: files of the
    certificate and its key. tracing: see trimtab.server.api.telemetry.spans. Raises UserError for keys that
    cannot be read.
    """

    def __init__(
        self,
        listener: socket.socket,
        engine_config: EngineConfig,
        api_config: ApiConfig,
        grace: float = 0.0,
        tls: tuple[Path, Path] | None = None,
        tracing: Tracing | None = None,
    ) -> None:
        self._listener, self._grace = listener, grace
        self._engine_config, self._api_config = engine_config, api_config
        access, (certificate, key) = api_config.access, tls or (None, None)
        self._app = create_waiting_app(access, tracing)
        self._server = _HttpServer(
            uvicorn.Config(
                self._app,
                log_config=None,
                access_log=False,
                lifespan="off",
                timeout_graceful_shutdown=SEND_SECONDS,
                http=timed_protocol(access.read_timeout, access.write_timeout),
                ws="none",
                limit_concurrency=access.max_connections,
                server_header=False,
                ssl_certfile=certificate,
                ssl_keyfile=key,
            )
        )
        self._num_stops = 0

    def stop(self) -> None:
        """Make `run` return: at first once the replies under way have ended or `grace` is over, when called
        again at once. May be called from any thread and from a signal handler."""
        self._num_stops += 1

    async def run(self, on_ready: Callable[[Service], None]) -> bool:
        """Serve until told to stop; calls on_ready once loaded. Every reply under way gets its end, which may
        be an error. False when it was told to stop before it was ready.

        Raises UserError, HeadError or ConfigError when the engine cannot be had as asked, EngineDiedError
        when it has died.
        """
        serving = asyncio.create_task(self._server.serve([self._listener]))
        try:
            engine = await self._load(serving)
            if engine is None:
                return False
            self._connect(engine, on_ready)
            while engine.status == "ready" and not self._num_stops and not serving.done():
                await asyncio.sleep(TICK)
            if engine.status == "dead":
                await asyncio.sleep(DEATH_SECONDS)
            else:
                await self._end(engine)
            if engine.status == "dead":
                raise EngineDiedError("the engine has died; the log above says why")
            return True
        finally:
            self._server.should_exit = True
            await serving

    async def _load(self, serving: asyncio.Task[None]) -> AsyncEngine | None:
        """The engine once it has loaded, or failed to; None when told to stop meanwhile."""
        template = self._api_config.chat_template
        access = self._api_config.access
        limits = access.max_queued_requests, access.max_queued_tokens
        loading = asyncio.to_thread(start_engine, self._engine_config, template, limits)
        starting = asyncio.create_task(loading)
        while not self._num_stops and not serving.done():
            if starting.done() and starting.result().status != "starting":
                return starting.result()
            await asyncio.sleep(TICK)
        return None

    def _connect(self, engine: AsyncEngine, on_ready: Callable[[Service], None]) -> None:
        from trimtab.guidance.errors import ModelError  # noqa: PLC0415 (loaded with the engine)

        try:
            engine.wait_until_loaded()
        except ModelError as error:
            raise UserError(str(error)) from error
        defaults = find_defaults(self._engine_config.model, self._api_config.generation_config)
        api_config = replace(self._api_config, sampling_defaults=defaults)
        connect(self._app, engine, engine.engine.policy.tokenizer, api_config)
        gc.collect()
        gc.freeze()  # else collections, which stop all threads, look at a million objects that stay
        on_ready(self._app.state.service)

    async def _end(self, engine: AsyncEngine) -> None:
        """New requests are refused from here on; the old ones end, one way or the other."""
        engine.stop_admitting()
        if self._server.num_replies:
            logger.warning(
                "stopping: %d replies may go on for %g s; a second signal ends them now",
                self._server.num_replies,
                self._grace,
            )
        deadline = time.monotonic() + self._grace
        while self._server.num_replies and time.monotonic() < deadline and self._num_stops < 2:
            await asyncio.sleep(TICK)
        await asyncio.to_thread(engine.stop, STEP_SECONDS)


class _HttpServer(uvicorn.Server):
    """uvicorn, which leaves signals to us: at the first one it would cut off what runs."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield

    @property
    def num_replies(self) -> int:
        """HTTP requests that have not been answered to the end."""
        return len(self.server_state.tasks)


def find_defaults(model: str | Path, generation_config: str) -> SamplingDefaults:
    """The sampling defaults that a loaded model comes with, or of what is named in their place.

    Raises UserError for a file that cannot be read or honoured.
    """
    from transformers.utils import cached_file  # noqa: PLC0415 (loaded with the engine)

    path: str | Path | None = generation_config
    if generation_config in ("none", "vllm"):
        path = None
    elif generation_config == "auto":
        where = find_model(model)
        path = cached_file(where, FILE, local_files_only=True, _raise_exceptions_for_missing_entries=False)
    elif Path(generation_config).is_dir():
        path = Path(generation_config) / FILE
    try:
        return SamplingDefaults() if path is None else read_defaults(Path(path))
    except GenerationConfigError as error:
        raise UserError(str(error)) from error


def start_engine(
    config: EngineConfig, chat_template: str | None, limits: tuple[int | None, int | None]
) -> AsyncEngine:
    """An engine that loads, in a thread of its own. limits: see QueueLimits.

    Importing torch and transformers takes seconds, in which the port should answer.
    """
    from trimtab.server.engine.async_engine import AsyncEngine, QueueLimits  # noqa: PLC0415
    from trimtab.server.engine.engine import Engine  # noqa: PLC0415

    _log_as_we_do()
    engine = AsyncEngine(lambda: Engine.from_config(config, chat_template), QueueLimits(*limits))
    engine.start()
    return engine


def _log_as_we_do() -> None:
    """transformers has a handler of its own, and bars, which are for terminals alone."""
    from transformers.utils import logging as of_transformers  # noqa: PLC0415 (loaded with the engine)

    of_transformers.disable_default_handler()
    of_transformers.enable_propagation()
    if not sys.stderr.isatty():
        of_transformers.disable_progress_bar()
