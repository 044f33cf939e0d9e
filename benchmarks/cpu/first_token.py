"""First token: seconds from `make serve` on an installed checkout to the first token of a streamed reply.

python -m benchmarks.cpu.first_token     (in the checkout's root; port 8000 must be free)
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path

import httpx

from benchmarks import common
from benchmarks.common import Document, spread_of, take_turns

BODY = {"messages": [{"role": "user", "content": "How do I bake bread?"}], "stream": True}


@dataclass(frozen=True, slots=True)
class FirstTokenConfig:
    """url: where `make serve` listens. timeout: seconds to wait for the server and its reply."""

    url: str = "http://127.0.0.1:8000"
    repeats: int = 3
    timeout: float = 120
    out: Path | None = None


def measure(config: FirstTokenConfig) -> Document:
    runs = take_turns({"serve": lambda turn: serve_once(config)}, config.repeats, progress="first token")
    ready, first = zip(*runs["serve"], strict=True)
    return {"seconds": {"ready": spread_of(ready).as_dict(), "first_token": spread_of(first).as_dict()}}


def serve_once(config: FirstTokenConfig) -> tuple[float, float]:
    """Start the server, stream one reply, stop the server; seconds to ready and to the first token."""
    start = time.perf_counter()
    server = subprocess.Popen(["make", "serve"], stdout=subprocess.DEVNULL, start_new_session=True)
    try:
        while not _is_ready(config.url):
            if server.poll() is not None or time.perf_counter() - start > config.timeout:
                raise SystemExit(
                    f"the server did not get ready within {config.timeout:g} s; run `make serve` to see why"
                )
            time.sleep(0.02)
        ready = time.perf_counter() - start
        _wait_for_token(config)
        return ready, time.perf_counter() - start
    finally:
        os.killpg(server.pid, signal.SIGINT)
        server.wait()


def _is_ready(url: str) -> bool:
    try:
        return httpx.get(f"{url}/health", timeout=1).status_code == 200
    except httpx.TransportError:
        return False


def _wait_for_token(config: FirstTokenConfig) -> None:
    url = f"{config.url}/v1/chat/completions"
    with httpx.stream("POST", url, json=BODY, timeout=config.timeout) as reply:
        for line in reply.iter_lines():
            if line.startswith("data: {") and json.loads(line[6:])["choices"][0]["delta"].get("content"):
                return
    raise SystemExit("the reply ended without a token")


def table(found: Document) -> str:
    return common.as_table(["from `make serve` to", "seconds"], list(found["seconds"].items()))


if __name__ == "__main__":
    common.main(FirstTokenConfig, measure, table)
