"""A served process under load: whoever leaves, reads nothing, floods or kills it, nothing else is lost.

`make load` runs it whole and prints what it measured; CI runs a tenth of it.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import random
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families
from served_process import start_process
from tiny_models import SIZES, byte_tokenizer, save_random_head, save_random_model
from transformers import LlamaConfig

IS_WHOLE = os.environ.get("TRIMTAB_LOAD") == "whole"
SHARE = 1 if IS_WHOLE else 10
CHAT, COMPLETIONS = "/v1/chat/completions", "/v1/completions"
BODY = {"messages": [{"role": "user", "content": "hello"}], "ignore_eos": True}
FLAGS = (
    *("--num-blocks", "96", "--max-num-seqs", "16", "--max-queued-requests", "1500"),
    *("--write-timeout", "2", "--read-timeout", "5"),
)
WARM_UP = 60  # requests after which memory should stand still
GROWTH_MIB = 32


@dataclass
class Served:
    process: subprocess.Popen[str]
    url: str

    @property
    def port(self) -> int:
        return int(self.url.rpartition(":")[2])

    @property
    def num_files(self) -> int:
        return len(os.listdir(f"/proc/{self.process.pid}/fd"))

    @property
    def resident_mib(self) -> float:
        status = Path(f"/proc/{self.process.pid}/status").read_text(encoding="utf-8")
        return int(re.search(r"VmRSS:\s+(\d+)", status)[1]) / 1024  # type: ignore[index]

    def metrics(self) -> dict[str, float]:
        """Sums over all labels."""
        sums: dict[str, float] = {}
        for family in text_string_to_metric_families(httpx.get(f"{self.url}/metrics").text):
            for sample in family.samples:
                sums[sample.name] = sums.get(sample.name, 0.0) + sample.value
        return sums


def tell(what: str) -> None:
    """A line of the table in server/README.md."""
    print(f"\nload: {what}", flush=True)


def wait_until(condition: Callable[[], bool], seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.05)


def start(policy: Path, room: Path, *flags: str, port: int = 0) -> Served:
    command = [sys.executable, "-m", "trimtab.server.cli", "serve", "--model", policy, "--port", port]
    command += ["--heads", policy / "heads/kind", *FLAGS, *flags]
    return Served(*start_process(command, {"TMPDIR": str(room)}, subprocess.DEVNULL))


@pytest.fixture(scope="module")
def policy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = save_random_model(LlamaConfig(**SIZES), tmp_path_factory.mktemp("policies") / "tiny")
    tokenizer = byte_tokenizer()
    tokenizer.chat_template = "{% for m in messages %}{{ m['content'] }}{% endfor %}>"
    tokenizer.save_pretrained(folder)
    save_random_head(folder / "heads", folder, "kind", seed=1)
    return folder


@pytest.fixture(scope="module")
def module_server(policy: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    served = start(policy, tmp_path_factory.mktemp("room"))
    httpx.post(served.url + CHAT, json={**BODY, "max_tokens": 2}).raise_for_status()
    yield served
    served.process.kill()
    served.process.communicate()


@pytest.fixture
def served(module_server: Served) -> Iterator[Served]:
    """Afterwards nothing is under way or held, and every request is accounted for."""
    num_files = module_server.num_files
    yield module_server
    wait_until(lambda: is_quiet(module_server))
    wait_until(lambda: module_server.num_files <= num_files + 1)
    assert httpx.get(f"{module_server.url}/health").status_code == 200


def is_quiet(served: Served) -> bool:
    found = served.metrics()
    held = ("vllm:num_requests_running", "vllm:num_requests_waiting", "vllm:kv_cache_usage_perc")
    is_idle = not any(found[name] for name in held)
    # The one that asks is under way.
    are_answered = found["http_requests_received_total"] == found["http_requests_total"] + 1
    have_ended = found["trimtab:replies_admitted_total"] == found["vllm:request_success_total"]
    return is_idle and are_answered and have_ended


def request_of(body: dict[str, Any], path: str = CHAT) -> bytes:
    content = json.dumps(body).encode()
    head = f"POST {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\n"
    return f"{head}Content-Length: {len(content)}\r\nConnection: close\r\n\r\n".encode() + content


async def stream(served: Served, body: dict[str, Any], leave_after: int | None = None) -> str:
    """What came, to the end or until so many bytes are there."""
    reader, writer = await asyncio.open_connection("127.0.0.1", served.port)
    try:
        writer.write(request_of({**BODY, **body, "stream": True}))
        if leave_after is None:
            return (await reader.read(-1)).decode()
        return (await reader.read(leave_after)).decode()
    finally:
        writer.close()


def test_each_of_many_streams_ends_once(served: Served):
    num, before = 1000 // SHARE, served.resident_mib

    async def all_at_once() -> list[str]:
        bodies = ({"max_tokens": 4, "seed": i, "guidance": {"strength": i % 3}} for i in range(num))
        return await asyncio.gather(*(stream(served, body) for body in bodies))

    start_time = time.monotonic()
    for text in asyncio.run(all_at_once()):
        assert text.startswith("HTTP/1.1 200 ")
        assert text.count("[DONE]") == 1
        assert text.count('"finish_reason":"length"') == 1
        assert '"error"' not in text
    seconds, after = time.monotonic() - start_time, served.resident_mib
    tell(f"{num} streams at once: {num} ends, {seconds:.1f} s, RSS {before:.0f} → {after:.0f} MiB")


def test_who_leaves_takes_nothing_along(served: Served):
    num, chance = 500 // SHARE, random.Random(1)

    async def all_at_once() -> list[str]:
        bytes_read = [chance.randrange(1, 4000) for _ in range(num)]
        leaving = [stream(served, {"max_tokens": 90}, leave_after=size) for size in bytes_read]
        staying = [stream(served, {"max_tokens": 8, "seed": i}) for i in range(10)]
        return (await asyncio.gather(*leaving, *staying))[num:]

    assert all(text.count("[DONE]") == 1 and '"error"' not in text for text in asyncio.run(all_at_once()))
    tell(f"{num} streams left at a random byte: the 10 beside them ended as always")


def test_who_reads_nothing_is_cut_off_and_holds_little(served: Served):
    """Replies of megabytes, into buffers of a few kilobytes."""
    num, before = 12 if IS_WHOLE else 4, served.resident_mib
    verbose = {"logprobs": True, "top_logprobs": 20, "guidance": {"strength": 1, "trace": True}}
    body = {**BODY, **verbose, "max_tokens": 110, "n": 16, "stream": True}
    sockets = []
    for _ in range(num):
        sockets.append(socket.socket())
        sockets[-1].setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        sockets[-1].connect(("127.0.0.1", served.port))
        sockets[-1].sendall(request_of(body))
    assert httpx.post(served.url + CHAT, json={**BODY, "max_tokens": 4}, timeout=60).status_code == 200
    wait_until(lambda: is_quiet(served), 120)
    growth = served.resident_mib - before
    for connection in sockets:
        connection.close()
    assert growth < 64
    tell(f"{num} readers of nothing: cut off after 2 s of it; RSS {growth:+.0f} MiB")


def test_what_the_queue_cannot_hold_is_told_to_come_again(served: Served):
    flood = {"prompt": ["a"] * 2000, "max_tokens": 8, "stream": True}
    answer = httpx.post(served.url + COMPLETIONS, json=flood, timeout=60)
    assert (answer.status_code, answer.json()["error"]["code"]) == (429, "queue_full")
    assert int(answer.headers["retry-after"]) > 0
    assert served.metrics()["vllm:num_requests_waiting"] < 2000
    tell("2 000 prompts for a queue of 1 500: 429 with Retry-After, before anything is sent")


async def together(served: Served, bodies: Sequence[dict[str, Any]]) -> list[Any]:
    async with httpx.AsyncClient(timeout=120) as client:
        replies = await asyncio.gather(
            *(client.post(served.url + CHAT, json={**BODY, **body}) for body in bodies)
        )
        return [reply.raise_for_status().json()["choices"] for reply in replies]


def test_memory_stands_still(served: Served):
    num, at_once = 3000 // SHARE, 10
    bodies = [{"max_tokens": 1 + i % 4, "n": 1 + i % 2, "logprobs": True} for i in range(at_once)]
    for _ in range(WARM_UP // at_once):
        asyncio.run(together(served, bodies))
    before = served.resident_mib
    for _ in range(num // at_once):
        asyncio.run(together(served, bodies))
    growth = served.resident_mib - before
    assert growth < GROWTH_MIB
    tell(f"{num} requests, ten at a time: RSS {before:.0f} MiB, {growth:+.1f} MiB after them")


def test_replies_are_the_same_where_the_cache_is_too_small_for_all(served: Served):
    """96 blocks of 16 tokens hold thirteen of these at their full length, and eight at any time."""
    bodies = [{"max_tokens": 110, "seed": i} for i in range(16)]
    apart = [reply for i in (0, 8) for reply in asyncio.run(together(served, bodies[i : i + 8]))]
    before = served.metrics()["vllm:num_preemptions_total"]
    replies = asyncio.run(together(served, bodies))
    num = served.metrics()["vllm:num_preemptions_total"] - before
    assert num > 0
    said = [[choices[0]["message"]["content"] for choices in each] for each in (apart, replies)]
    assert said[0] == said[1]
    tell(f"16 replies in a cache for 13: {num:.0f} preemptions, all replies as without")


def test_a_killed_server_is_missed_at_once_and_can_be_started_again(policy: Path, tmp_path: Path):
    first = start(policy, tmp_path)

    async def read() -> float:
        reading = asyncio.create_task(stream(first, {"max_tokens": 100, "n": 128}))
        await asyncio.sleep(0.2)
        first.process.send_signal(signal.SIGKILL)
        killed = time.monotonic()
        with contextlib.suppress(ConnectionError):
            assert "[DONE]" not in await reading
        return time.monotonic() - killed

    seconds = asyncio.run(read())
    first.process.communicate()
    assert seconds < 2
    assert [path.name for path in tmp_path.iterdir() if not path.name.startswith("torchinductor")] == []
    second = start(policy, tmp_path, port=first.port)
    try:
        assert httpx.post(second.url + CHAT, json={**BODY, "max_tokens": 2}).status_code == 200
    finally:
        second.process.kill()
        second.process.communicate()
    tell(f"kill -9: its streams broke off after {seconds:.2f} s; no file left, the same port served again")
