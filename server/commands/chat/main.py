"""`trimtab chat`: a conversation with a server that runs, or with one of its own."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Iterator, Sequence
from queue import SimpleQueue

from trimtab.server.commands.chat.config import ChatConfig
from trimtab.server.commands.model import ModelConfig, resolve_api, resolve_engine
from trimtab.server.commands.serve.main import bind
from trimtab.server.flags import parse


def main(prog: str, args: Sequence[str]) -> None:
    """Chats with the server at --url, or with one of its own."""
    config = parse(ChatConfig, prog, args)
    from trimtab.server.commands.chat.run import run  # noqa: PLC0415 (bad flags are told before)

    with contextlib.nullcontext(config.url) if config.url else _own_server(config) as url:
        run(url)


@contextlib.contextmanager
def _own_server(config: ModelConfig) -> Iterator[str]:
    """A server of our own on a free port, in a thread. Raises what loading raises."""
    from trimtab.server.commands.serve.run import ModelServer  # noqa: PLC0415 (heavy)

    listener = bind("127.0.0.1", 0)
    server = ModelServer(listener, resolve_engine(config.engine), resolve_api(config))
    outcome: SimpleQueue[BaseException | None] = SimpleQueue()

    def run() -> None:
        try:
            asyncio.run(server.run(lambda *_: outcome.put(None)))
        except BaseException as error:
            outcome.put(error)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    if (error := outcome.get()) is not None:
        raise error
    try:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
    finally:
        server.stop()
        thread.join()
