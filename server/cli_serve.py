"""`trimtab serve`: flags, the port, and what a newcomer is told."""

from __future__ import annotations

import asyncio
import logging
import shlex
import socket
import time
from collections.abc import Sequence
from dataclasses import dataclass

from trimtab.server.api.config import ApiConfig
from trimtab.server.cli_errors import UserError
from trimtab.server.cli_flags import parse
from trimtab.server.cli_model import ModelConfig, resolve_api, resolve_engine
from trimtab.server.engine.info import EngineInfo

CURL_BODY = '{"messages": [{"role": "user", "content": "How do I keep my garden alive in a dry summer?"}]%s}'


@dataclass(frozen=True)
class ServeConfig(ModelConfig):
    """Serves a model with its heads over HTTP as OpenAI does: /v1/chat/completions, /v1/completions,
    /v1/models and /health. Requests steer with a `guidance` object: strength, heads and trace.

    host: address to listen on; 0.0.0.0 is every one. port: 0 takes a free one.
    """

    host: str = "127.0.0.1"
    port: int = 8000

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.port < 2**16:
            raise ValueError(f"port must be 0…65535, got {self.port}")


def main(prog: str, args: Sequence[str]) -> None:
    config = parse(ServeConfig, prog, args)
    engine_config, api_config = resolve_engine(config), resolve_api(config)
    listener = bind(config.host, config.port)
    url = f"http://{_netloc(listener)}"
    print(f"loading {config.model}; until it is ready {url}/health answers 503", flush=True)
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s %(name)s: %(message)s")
    start = time.perf_counter()

    def announce(info: EngineInfo, resolved: ApiConfig) -> None:
        print(welcome(info, resolved, url, time.perf_counter() - start), flush=True)

    from trimtab.server.cli_serving import ModelServer  # noqa: PLC0415 (heavy; the port is bound before)

    asyncio.run(ModelServer(listener, engine_config, api_config).run(announce))


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


def welcome(info: EngineInfo, config: ApiConfig, url: str, seconds: float) -> str:
    """What a newcomer needs to know: the model, the heads, where it listens, and something to try."""
    heads = ", ".join(head.name for head in info.heads) or "none (add some with --heads FOLDER)"
    default = f"{config.default_head or 'no head'} at strength {config.default_strength:g}"
    steers = any(head.has_advantage for head in info.heads)
    body = CURL_BODY % (', "guidance": {"strength": 2}' if steers and config.default_head else "")
    header = shlex.quote("Content-Type: application/json")
    return (
        f"model    {info.model_name}, {info.max_model_len} tokens of context\n"
        f"heads    {heads}\n"
        f"default  {default}\n"
        f"ready    {url}/v1 after {seconds:.1f} s\n\n"
        f"try      curl {url}/v1/chat/completions -H {header} -d {shlex.quote(body)}\n"
    )


def _netloc(listener: socket.socket) -> str:
    host, port = listener.getsockname()[:2]
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
