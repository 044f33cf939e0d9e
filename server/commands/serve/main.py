"""`trimtab serve`: flags, the port, and what a newcomer is told."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import ipaddress
import json
import logging
import os
import shlex
import signal
import socket
import ssl
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

from trimtab.guidance.errors import (
    ConfigError,
    DataError,
    EngineDiedError,
    HeadError,
    PolicyError,
    UserError,
)
from trimtab.server.api.access.config import AccessConfig
from trimtab.server.api.telemetry.log_lines import set_up_log
from trimtab.server.commands.model import resolve_api, resolve_engine
from trimtab.server.commands.serve.config import ServeConfig
from trimtab.server.commands.settings import print_settings, read_settings

if TYPE_CHECKING:
    from trimtab.server.api.service import Service
    from trimtab.server.api.telemetry.spans import Tracing
    from trimtab.server.commands.serve.run import ModelServer


logger = logging.getLogger(__name__)
LOOPBACK = ("localhost", "127.0.0.1", "::1")


def main(prog: str, args: Sequence[str]) -> None:
    """Serves until told to stop, and leaves the process: with 0, or with 1 if the engine has died. Raises
    UsageError, UserError, DataError, HeadError or ConfigError with one line."""
    config = read_settings(ServeConfig, prog, args)
    if config.print_config:
        print(print_settings(config), end="")
        return
    set_up_log(config.telemetry)
    try:
        _serve(config)
    except (UserError, DataError, HeadError, PolicyError, ConfigError) as error:
        if config.telemetry.log_format == "text":  # else all that is told is JSON
            raise
        logger.critical("%s", error)
        leave(1)


def _serve(config: ServeConfig) -> None:
    engine_config = resolve_engine(config.engine)
    if config.access.heads_dir is not None:
        engine_config = replace(engine_config, num_vacant_heads=config.access.max_loaded_heads)
    api_config = replace(
        resolve_api(config), tool_call_parser=config.tool_call_parser, telemetry=config.telemetry
    )
    from trimtab.server.api.telemetry.spans import make_tracing  # noqa: PLC0415 (heavy, as others are)

    tracing = make_tracing(config.telemetry.otel_endpoint, os.environ)
    listener = bind(config.host, config.port)
    api_config = replace(api_config, access=at_home(config.access, listener))
    tls = check_tls(config)
    url = f"{'https' if tls else 'http'}://{_netloc(listener)}"
    is_text = config.telemetry.log_format == "text"
    loading = f"loading {config.engine.model}; until it is ready {url}/health answers 503"
    if is_text:
        print(loading, flush=True)
    else:
        logger.info("%s", loading)
    start = time.perf_counter()
    from trimtab.server.api.models.profiles import read_profiles  # noqa: PLC0415 (heavy, as the next is)
    from trimtab.server.commands.serve.run import ModelServer  # noqa: PLC0415 (heavy; the port is bound before)

    api_config = replace(api_config, profiles=read_profiles(config.profiles))

    def announce(service: Service) -> None:
        gc.collect()
        gc.freeze()  # what has been loaded stays: no later collection walks it, and holds every stream up
        seconds = time.perf_counter() - start
        if is_text:
            print(welcome(service, url, seconds), flush=True)
        else:
            logger.info("ready", extra={"fields": _facts(service, url, seconds)})

    server = ModelServer(listener, engine_config, api_config, config.drain, tls, tracing)
    asyncio.run(_serve_and_leave(server, announce, tracing))


def _facts(service: Service, url: str, seconds: float) -> dict[str, object]:
    heads = [head.name for head in service.info.heads]
    return {
        "model": service.info.model_name,
        "heads": heads,
        "url": f"{url}/v1",
        "seconds": round(seconds, 1),
    }


async def _serve_and_leave(
    server: ModelServer, announce: Callable[[Service], None], tracing: Tracing | None
) -> NoReturn:
    """The first signal lets replies end, the second ends them, the third leaves at once."""
    received: list[int] = []

    def take(number: int) -> None:
        received.append(number)
        server.stop()
        if len(received) > 2:
            leave(128 + number)

    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, take, number)
    try:
        was_ready = await server.run(announce)
    except EngineDiedError as error:
        logger.critical("%s", error)
        leave(1)
    finally:
        if tracing is not None:
            await asyncio.to_thread(tracing.close)
    leave(0 if was_ready else 128 + received[0])


def leave(code: int) -> NoReturn:
    """Ends the process and waits for no thread: one may be inside torch, where the interpreter's orderly end
    would crash, or at work for a request that is over."""
    with contextlib.suppress(OSError):
        sys.stdout.flush()
        sys.stderr.flush()
    os._exit(code)


def bind(host: str, port: int) -> socket.socket:
    """A listening socket. Raises UserError when the port is taken or the address is not ours."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        return socket.create_server((host, port), family=family)
    except OSError as error:
        reason = (error.strerror or str(error)).split("(")[0].strip().lower()
        raise UserError(
            f"cannot listen on port {port} of {host}: {reason}; choose others with --port and --host"
        ) from error


def check_tls(config: ServeConfig) -> tuple[Path, Path] | None:
    """The files of the certificate and its key. Raises UserError for what cannot be read, or does not fit."""
    certificate, key = config.tls_certificate, config.tls_key
    if certificate is None or key is None:
        return None
    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(certificate, key)
    except OSError as error:  # ssl's own among them
        raise UserError(
            f"--tls-certificate {certificate}, --tls-key {key}: {error.strerror or error}; name PEM files of "
            "a certificate and its key"
        ) from error
    return certificate, key


def at_home(access: AccessConfig, listener: socket.socket) -> AccessConfig:
    """On a loopback address with the names that this machine has for itself, unless hosts are named."""
    is_loopback = ipaddress.ip_address(listener.getsockname()[0]).is_loopback
    return replace(access, allowed_hosts=LOOPBACK) if is_loopback and not access.allowed_hosts else access


def welcome(service: Service, url: str, seconds: float) -> str:
    """What a newcomer needs to know: the model, the heads, where it listens, and something to try."""
    info, config = service.info, service.config
    heads = ", ".join(head.name for head in info.heads) or "none (add some with --heads FOLDER)"
    default = f"{config.default_head or 'no head'} at strength {config.default_strength:g}"
    sampling = str(config.sampling_defaults)
    if sampling:
        source = config.sampling_defaults.source
        sampling = f"sampling {sampling}, by {source} (--generation-config none goes without)\n"
    return (
        f"model    {info.model_name}, {info.max_model_len} tokens of context\n"
        f"heads    {heads}\n"
        f"default  {default}\n"
        f"{sampling}"
        f"ready    {url}/v1 after {seconds:.1f} s\n\n"
        f"try      {_example(service, url)}\n"
    )


def _example(service: Service, url: str) -> str:
    """A request that this model can answer, and that steers where it can."""
    body: dict[str, object] = {"prompt": "Once upon a time"}
    if service.can_chat:
        question = "Tomorrow is my first day at a new job. Any advice?"
        body = {"messages": [{"role": "user", "content": question}]}
    if any(head.name == service.config.default_head and head.has_advantage for head in service.info.heads):
        body["guidance"] = {"strength": 2}
    path = "/v1/chat/completions" if service.can_chat else "/v1/completions"
    header = "Content-Type: application/json"
    return shlex.join(["curl", url + path, "-H", header, "-d", json.dumps(body)])


def _netloc(listener: socket.socket) -> str:
    host, port = listener.getsockname()[:2]
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
