"""Load client: keeps so many streams open on a server and times their tokens, in a process of its own.

Started by benchmarks.serving as `PYTHON load_client.py`: a JSON job a line in, what was seen a line out.
While replies come it only notes what arrived when; that is read afterwards, so that its own time stays small.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import math
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import aiohttp

TIMEOUT = 300.0  # seconds that a reply may take
WARM_UP_TOKENS = 8
Json = dict[str, Any]


@dataclass(slots=True)
class Reply:
    """What one request saw. began: seconds, of the clock of `arrived`: (when, bytes). error: None if none."""

    began: float
    arrived: list[tuple[float, bytes]] = field(default_factory=list)
    error: str | None = None


async def fetch(session: aiohttp.ClientSession, url: str, body: Json) -> Reply:
    """One streamed reply, to its end."""
    reply = Reply(time.perf_counter())
    try:
        async with session.post(url, json=body) as response:
            if response.status != 200:
                reply.error = f"status {response.status}: {(await response.text())[:200]}"
                return reply
            async for data in response.content.iter_any():
                reply.arrived.append((time.perf_counter(), data))
    except (aiohttp.ClientError, TimeoutError) as error:
        reply.error = f"{type(error).__name__}: {error}"
    return reply


async def load(url: str, bodies: Sequence[Json], num_streams: int) -> list[Reply]:
    """All replies; each stream sends the next request when its reply has ended."""
    waiting, replies = iter(bodies), list[Reply]()
    connector = aiohttp.TCPConnector(limit=num_streams)
    timeout = aiohttp.ClientTimeout(total=TIMEOUT)
    async with aiohttp.ClientSession(connector=connector, timeout=timeout, read_bufsize=2**18) as session:

        async def stream() -> None:
            for body in waiting:
                replies.append(await fetch(session, url, body))

        await asyncio.gather(*(stream() for _ in range(num_streams)))
    return replies


def events(reply: Reply) -> Iterator[tuple[float, Any]]:
    """(when it was whole, what it says) of each server-sent event with JSON."""
    rest = b""
    for when, data in reply.arrived:
        *whole, rest = (rest + data).split(b"\n\n")
        for event in whole:
            if event.startswith(b"data: {"):
                yield when, json.loads(event[6:])


def times_of(reply: Reply) -> tuple[list[float], int]:
    """When its pieces of text came, and its tokens as the server counts them. A reply that says of an error,
    or has no count, gets one."""
    times, num_tokens = [], 0
    for when, event in events(reply):
        if "error" in event:
            reply.error = str(event["error"])[:200]
        if any(choice.get("text") for choice in event.get("choices", ())):
            times.append(when)
        num_tokens = (event.get("usage") or {}).get("completion_tokens", num_tokens)
    if reply.error is None and not num_tokens:
        reply.error = "the stream ended without its usage"
    return times, num_tokens


def percentile(values: Sequence[float], share: float) -> float | None:
    """The smallest value that so large a share does not pass (the nearest rank)."""
    ranked = sorted(values)
    return ranked[max(math.ceil(share * len(ranked)) - 1, 0)] if ranked else None


def summary(replies: Sequence[Reply], began: float, cpu_seconds: float) -> Json:
    """Milliseconds and tokens a second; first_token and between_tokens as p50 and p99 of this load."""
    first, between = list[float](), list[float]()
    num_tokens, ended = 0, began
    for reply in replies:
        times, num = times_of(reply)
        num_tokens += num
        if reply.arrived:
            ended = max(ended, reply.arrived[-1][0])
        if times:
            first.append(times[0] - reply.began)
            between += [after - before for before, after in itertools.pairwise(times)]
    seconds = ended - began
    errors = [reply.error for reply in replies if reply.error is not None]
    found: Json = {"replies": len(replies), "errors": len(errors), "tokens": num_tokens, "seconds": seconds}
    found["tokens_per_second"] = num_tokens / seconds if seconds else 0.0
    for name, values in (("first_token_ms", first), ("between_tokens_ms", between)):
        for share in (50, 99):
            value = percentile(values, share / 100)
            found[f"{name}_p{share}"] = None if value is None else 1000 * value
    found["client_cpu_share"] = cpu_seconds / seconds if seconds else 0.0  # of one core
    if errors:
        found["first_error"] = errors[0]
    return found


def run(job: Json) -> Json:
    """job: url, num_streams, prompts (token ids), new_tokens, and fields of the requests beside these."""
    common = {"stream": True, "stream_options": {"include_usage": True}, "ignore_eos": True}
    common |= {"temperature": 1.0, **job["fields"]}

    def bodies(prompts: Sequence[Sequence[int]], new_tokens: int) -> list[Json]:
        return [{"prompt": [*prompt], "max_tokens": new_tokens, **common} for prompt in prompts]

    url, num_streams, prompts = job["url"], job["num_streams"], job["prompts"]
    others = [prompt[::-1] for prompt in prompts[:num_streams]]  # nobody is to find the timed ones in a cache
    asyncio.run(load(url, bodies(others, WARM_UP_TOKENS), num_streams))
    timed = bodies(prompts, job["new_tokens"])
    cpu, began = time.process_time(), time.perf_counter()
    replies = asyncio.run(load(url, timed, num_streams))
    return summary(replies, began, time.process_time() - cpu)


def main() -> None:
    print(json.dumps({"version": f"aiohttp {aiohttp.__version__}"}), flush=True)
    for line in sys.stdin:
        print(json.dumps(run(json.loads(line))), flush=True)


if __name__ == "__main__":
    main()
