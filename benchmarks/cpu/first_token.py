"""Seconds from `make serve` on an installed checkout to the first token of a streamed reply.

python -m benchmarks.cpu.first_token     (in the checkout's root; port 8000 must be free)
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time

import httpx
import tyro

BODY = {"messages": [{"role": "user", "content": "How do I bake bread?"}], "stream": True}


def measure(url: str, timeout: float) -> dict[str, float]:
    """Start the server, stream one reply, stop the server; seconds to ready and to the first token."""
    start = time.perf_counter()
    server = subprocess.Popen(["make", "serve"], stdout=subprocess.DEVNULL, start_new_session=True)
    try:
        while not _is_ready(url):
            if server.poll() is not None or time.perf_counter() - start > timeout:
                raise SystemExit(
                    f"the server did not get ready within {timeout:g} s; run `make serve` to see why"
                )
            time.sleep(0.02)
        ready = time.perf_counter() - start
        with httpx.stream("POST", f"{url}/v1/chat/completions", json=BODY, timeout=timeout) as reply:
            for line in reply.iter_lines():
                if line.startswith("data: {") and json.loads(line[6:])["choices"][0]["delta"].get("content"):
                    return {"ready": round(ready, 2), "first_token": round(time.perf_counter() - start, 2)}
        raise SystemExit("the reply ended without a token")
    finally:
        os.killpg(server.pid, signal.SIGINT)
        server.wait()


def _is_ready(url: str) -> bool:
    try:
        return httpx.get(f"{url}/health", timeout=1).status_code == 200
    except httpx.TransportError:
        return False


def main(url: str = "http://127.0.0.1:8000", repeats: int = 3, timeout: float = 120) -> None:
    """Measure several times and print one JSON line each.

    Args:
        url: where `make serve` listens.
        repeats: measurements.
        timeout: seconds to wait for the server and its reply.
    """
    for _ in range(repeats):
        print(json.dumps(measure(url, timeout)), flush=True)


if __name__ == "__main__":
    tyro.cli(main)
