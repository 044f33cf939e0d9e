"""First token: seconds from `make serve` on an installed checkout to the first token of a streamed reply, and
the memory that the server takes.

python -m benchmarks.cpu.first_token     (in the checkout's root; port 8000 must be free)
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import tempfile
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import httpx

from benchmarks import common
from benchmarks.common import Document, spread_of, take_turns

BODY = {"messages": [{"role": "user", "content": "How do I bake bread?"}], "stream": True}


@dataclass(frozen=True, slots=True)
class FirstTokenConfig:
    """command: starts the server. url: where it listens. cold: every time as on a new machine, which has
    neither the C++ library nor a converted model. timeout: seconds to wait for the server and its reply."""

    command: tuple[str, ...] = ("make", "serve")
    url: str = "http://127.0.0.1:8000"
    cold: bool = False
    repeats: int = 3
    timeout: float = 120
    out: Path | None = None


def measure(config: FirstTokenConfig) -> Document:
    runs = take_turns({"serve": lambda turn: serve_once(config)}, config.repeats, progress="first token")
    ready, first, peak, steady = (spread_of(each).as_dict() for each in zip(*runs["serve"], strict=True))
    return {
        "seconds": {"ready": ready, "first_token": first},
        "gib": {"peak until ready": peak, "after the reply": steady},
    }


def serve_once(config: FirstTokenConfig) -> tuple[float, float, float, float]:
    """Start the server, stream one reply, stop the server; seconds to ready and to the first token, and GiB
    of memory at the most until it was ready, and at the end."""
    with tempfile.TemporaryDirectory() as empty:
        return _serve_in(config, os.environ | ({"XDG_CACHE_HOME": empty} if config.cold else {}))


def _serve_in(config: FirstTokenConfig, environment: dict[str, str]) -> tuple[float, float, float, float]:
    start = time.perf_counter()
    server = subprocess.Popen(
        config.command, stdout=subprocess.DEVNULL, start_new_session=True, env=environment
    )
    try:
        while not _is_ready(config.url):
            if server.poll() is not None or time.perf_counter() - start > config.timeout:
                raise SystemExit(
                    f"the server did not get ready within {config.timeout:g} s; run `make serve` to see why"
                )
            time.sleep(0.02)
        ready, peak = time.perf_counter() - start, _gib_of_group(server.pid, "VmHWM")
        _wait_for_token(config)
        return ready, time.perf_counter() - start, peak, _gib_of_group(server.pid, "VmRSS")
    finally:
        os.killpg(server.pid, signal.SIGINT)
        server.wait()


def _gib_of_group(group: int, field: str) -> float:
    """Of the largest process of a group, as /proc/PID/status has it."""
    found = [0.0]
    for folder in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            if os.getpgid(int(folder.name)) == group:
                lines = (folder / "status").read_text(encoding="utf-8").splitlines()
                found += [int(line.split()[1]) / 2**20 for line in lines if line.startswith(f"{field}:")]
    return max(found)


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
    seconds = common.as_table(["from the start to", "seconds"], list(found["seconds"].items()))
    return f"{seconds}\n\n{common.as_table(['memory', 'GiB'], list(found['gib'].items()))}"


if __name__ == "__main__":
    common.main(FirstTokenConfig, measure, table)
